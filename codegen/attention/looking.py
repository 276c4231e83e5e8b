"""Which tiles of keys masks hide, looked for by a launch of its own before those that read keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

from overlapc.codegen.attention.checking import Sizes
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.planning.problem import ITEM_BYTES

if TYPE_CHECKING:
    from torch import Tensor

LEAST_KEYS = 1024
"""From which masks are looked through before, for what they hide: a launch that is little beside
the other from there on. Chosen."""
OPERATIONS_A_BYTE = {"float32": 30, "float16": 200, "bfloat16": 200}
"""Multiplications and additions that a device makes while it reads a byte, by dtype: about those of
the target of an H100, and of float32 as three products of tf32. Nothing was timed."""
MOST_PROGRAMS = 2**31 - 1
"""Of a grid's first dimension; others take 65535."""
MOST_MEMORY = 1 / 8
"""Of queries, keys, values and the result, what flags may take beside them. Chosen."""
FLAG_BYTES = 4
SPARED = 0.75
"""Of the keys, what a mask is taken to hide, where that decides whether to look; assumed."""


@dataclass(frozen=True)
class KeptTiles:
    """What the masks of one call keep, told once for kernels whose tiles are alike."""

    spec: AttentionSpec
    device: Any
    inputs: Sequence[Tensor]
    parts: tuple[Any, ...]
    """What kernels are told of ``inputs``."""
    lengths: tuple[Tensor, int] | None
    """The same of lengths."""
    sizes: Sizes
    found: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By rows and keys of a tile."""
    floors: list[Tensor] = field(default_factory=list)
    """One of each row, where they have been asked for: of whatever tiles."""

    def of(self, module: ModuleType, tile: AttentionTile) -> tuple[Tensor | None, int]:
        """Whether some row of each block keeps a key of each tile, int32[batch, heads, blocks,
        tiles], and of how many heads it tells: one where all have the same. None where a generated
        module looks for nothing hidden, it would not pay, or there would be too many of them."""
        if not hasattr(module, "FIND_KEPT") or not pays(self.spec, self.inputs, self.sizes):
            return None, 1
        blocks = (tile.block_m, tile.block_n)
        kept = self.found.get(blocks)
        if kept is None:
            heads = self.sizes.heads if any(heads_of(tensor) > 1 for tensor in self.inputs) else 1
            shape = shape_of(self.spec, self.sizes, heads, blocks)
            if shape is None:
                return None, 1
            kept = self.found[blocks] = self._look(module, shape)
        return kept, kept.shape[1]

    def _look(self, module: ModuleType, shape: tuple[int, int, int, int]) -> Tensor:
        import torch

        batch, heads = shape[:2]
        counts = (heads, self.sizes.rows, self.sizes.keys)
        has_floors = hasattr(module, "FIND_FLOORS")
        if has_floors and not self.floors:
            floors = torch.empty((batch, *counts[:2]), dtype=torch.float32, device=self.device)
            blocks = -(-self.sizes.rows // module.FLOORS_CONSTANTS["BLOCK_M"])
            module.FIND_FLOORS[(batch * heads * blocks,)](
                floors, self.parts, self.lengths, *counts, **module.FLOORS_CONSTANTS
            )
            self.floors.append(floors)
        kept = torch.empty(shape, dtype=torch.int32, device=self.device)
        module.FIND_KEPT[(kept.numel(),)](
            kept, self.floors[0] if has_floors else None, self.parts, self.lengths, *counts,
            **module.KEPT_CONSTANTS,
        )  # fmt: skip
        return kept


def shape_of(
    spec: AttentionSpec, sizes: Sizes, heads: int, blocks: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return how many flags there are of tiles of so many rows and keys, ``[batch, heads, blocks,
    tiles]``; None where a grid has no place for as many programs, or they take more memory than
    ``MOST_MEMORY``."""
    shape = (sizes.batch, heads, -(-sizes.rows // blocks[0]), -(-sizes.keys // blocks[1]))
    count = prod(shape)
    columns = (spec.head_dim + spec.value_dim) * ITEM_BYTES[spec.dtype]
    own = sizes.rows * sizes.heads + sizes.keys * sizes.heads // spec.groups
    most = MOST_MEMORY * sizes.batch * own * columns
    return shape if count <= MOST_PROGRAMS and count * FLAG_BYTES <= most else None


def pays(spec: AttentionSpec, inputs: Sequence[Tensor], sizes: Sizes) -> bool:
    """Return whether looking masks through is worth its time, where they hide ``SPARED`` of keys.

    A mask that all heads share is read once more than they read it, from where they find it then.
    What differs by head is read from memory for each score, and has to take less than is spared of
    the products.
    """
    if sizes.keys < LEAST_KEYS:
        return False
    bytes_a_score = sum(
        tensor.element_size()
        for item, tensor in zip(spec.inputs, inputs, strict=True)
        if item.shape == "matrix" and heads_of(tensor) > 1
    )
    products = 2 * (spec.head_dim + spec.value_dim)
    return bytes_a_score * OPERATIONS_A_BYTE[spec.dtype] < SPARED * products


def heads_of(tensor: Tensor) -> int:
    """Heads of an input of scores, which may be one for all."""
    return tensor.shape[-3] if tensor.dim() > 2 else 1
