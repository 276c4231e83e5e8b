"""Which tile a generated kernel has where one is planned: planner and `codegen` ask the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overlapc.planning.tiles import MOST_SUMS, SPARING_SUMS, Tile, sm_number, sums, tiles_for

TMA_ALIGNMENT = 16
"""Bytes of which pointers and outer strides are multiples where descriptors are used."""

VECTOR = 16
"""Elements of which sizes and strides are multiples where Triton reads and stores many at once."""

LAYOUT = re.compile(r"(?:row|col)(?::\d+)?|strided")
"""How a matrix lies: "row" or "col", whichever is contiguous, and its other stride in elements
where that leaves gaps; or "strided", where neither is."""


@dataclass(frozen=True)
class KernelFacts:
    """What decides how large a tile leaves registers to a kernel of ``A[m, k] @ B[k, n]``."""

    architecture: str
    dtype: str
    """Dtype of A and B."""
    stored: str
    """Dtype of what is stored."""
    depth: int
    """k."""
    layouts: tuple[str, str]
    """How A and B lie (`LAYOUT`)."""
    by_tma: bool
    """Whether the TMA unit loads both, so that no thread keeps addresses."""
    by_vectors: bool
    """Whether threads store many elements at once, and load them where the TMA unit does not: each
    that is alone has an address, and those of odd sizes are not copied to shared memory at once."""
    most_sums: int = MOST_SUMS
    """Elements of C that a thread may hold beside the epilogue."""
    is_bare: bool = True
    """Whether there is no epilogue."""

    def tile(self, planned: Tile) -> Tile:
        """The planned one, or where it leaves too few registers another of as many rows."""
        if not self.by_vectors and sm_number(self.architecture):
            return self._narrow(planned)
        if sums(planned, self.architecture) <= SPARING_SUMS:
            return planned
        # The whole tile passes through registers on its way from tensor memory.
        passes = self.stored == "float32" and sm_number(self.architecture) >= 100
        if passes or not self._leaves_registers(planned):
            return self._sparing(planned)
        # Addresses take the registers of one more stage.
        return planned if self.by_tma else replace(planned, stages=min(planned.stages, 3))

    def _leaves_registers(self, tile: Tile) -> bool:
        """Whether a tile of many sums leaves them to the epilogue, and to addresses if any are."""
        if self.by_tma:
            return sums(tile, self.architecture) <= self.most_sums
        a, b = self.layouts
        even_k = self.depth % tile.block_k == 0
        return self.is_bare and "strided" not in (a, b) and (b.startswith("col") or even_k)

    def _narrow(self, tile: Tile) -> Tile:
        """A sparing one, and half of it for each thing else that addresses leave no room for."""
        sparing, number = self._sparing(tile), sm_number(self.architecture)
        halves = (not self.by_tma and number >= 100) + (not self.is_bare and number >= 90)
        return replace(sparing, block_n=sparing.block_n >> halves)

    def _sparing(self, tile: Tile) -> Tile:
        """The widest configuration of as many rows that leaves registers to anything."""
        others = [
            other
            for other in tiles_for(self.architecture, self.dtype)
            if other.block_m == tile.block_m and sums(other, self.architecture) <= SPARING_SUMS
        ]
        return max(others, key=lambda other: other.block_n, default=tile)


def loads_by_tma(architecture: str, item_bytes: int, *, aligned: bool) -> bool:
    """Whether the TMA unit loads operands, given that their strides and bases allow it.

    Of 32 bits it has no use: such products are not made by matrix units.
    """
    return aligned and item_bytes <= 2 and sm_number(architecture) >= 90


def reads_vectors(strides: Sequence[int]) -> bool:
    """Whether threads can read a matrix many elements at once, given that its base is aligned."""
    return 1 in strides and all(stride == 1 or stride % VECTOR == 0 for stride in strides)


def tma_reads(layout: str, strides: Sequence[int], item_bytes: int) -> bool:
    """Whether the TMA unit can read a matrix of a spec's layout, given that its base is aligned."""
    outer = strides[0 if layout == "row" else 1] * item_bytes
    return layout != "strided" and outer % TMA_ALIGNMENT == 0 and 0 < outer < 2**40


def layout_name(strides: Sequence[int]) -> str:
    """How a spec names the strides of a matrix: "row", "col" or "strided"."""
    rows, columns = strides
    if columns == 1:
        return "row"
    return "col" if rows == 1 else "strided"


def layout_of(strides: Sequence[int], shape: Sequence[int]) -> str:
    """The layout of a matrix, as ``LAYOUT`` says it."""
    name = layout_name(strides)
    by_row = name == "row"
    # What is there but once has any stride.
    is_dense = shape[0 if by_row else 1] <= 1 or tuple(strides) == strides_of(name, *shape)
    return name if name == "strided" or is_dense else f"{name}:{strides[0 if by_row else 1]}"


def strides_of(layout: str, rows: int, columns: int) -> tuple[int, int]:
    """Strides of ``[rows, columns]`` with that layout; of a strided one every other element."""
    name, _, outer = layout.partition(":")
    if name == "strided":
        return 2 * columns, 2
    return (int(outer or columns), 1) if name == "row" else (1, int(outer or rows))
