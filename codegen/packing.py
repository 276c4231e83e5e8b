"""Packed order: the groups of tiles that a kernel announces, and copies of C into and from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError
from overlapc.planning.packed_order import AXES, PackedOrder, packs
from overlapc.planning.tiles import SWEEP

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Groups of consecutive tiles of C[m, n] that are announced, and sent.

    Where few tile rows hold many tiles, they are finer than bands.
    """

    order: PackedOrder
    tiles: tuple[int, ...]
    """Tiles of each group, in the order in which they complete."""

    @classmethod
    def of(
        cls, spec: GemmSpec, m: int, n: int, tiles: Sequence[int], sweep: int = SWEEP
    ) -> Packing:
        """The groups of so many tiles of what this kernel stores where it is launched with the
        sweep; KernelError if they are none."""

        def require(holds: bool, rule: str) -> None:
            if not holds:
                raise KernelError(
                    f"C cannot be packed unless {rule}.",
                    where=f"C[{m}, {n}] in groups of {tuple(tiles)} tiles, {spec}",
                    remedy="use the band order",
                )

        require(spec.order == "packed", "the kernel packs")
        tile = spec.tile.swept(sweep)
        require(packs(tile, m) and n > 0, "its tile rows are whole sweeps, or less than one")
        order = PackedOrder(m, n, tile)
        whole = bool(tiles) and all(count > 0 for count in tiles) and sum(tiles) == order.tiles
        require(whole, f"groups hold all {order.tiles} tiles, each >0")
        return cls(order, tuple(tiles))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The elements of the buffer of each group."""
        size = self.order.tile.elements
        ends = list(accumulate(self.tiles))
        starts = [0, *ends]
        return tuple(slice(at * size, end * size) for at, end in zip(starts, ends, strict=False))

    @property
    def targets(self) -> tuple[int, ...]:
        """What each counter reads when its group is complete."""
        return self.tiles

    @cached_property
    def table(self) -> tuple[int, ...]:
        """What the kernel reads (int32): the group of each tile, in the order of computation."""
        return tuple(group for group, count in enumerate(self.tiles) for _ in range(count))


def unpack(buffer: Tensor, order: PackedOrder) -> Tensor:
    """C[m, n], copied out of its tiles, row after row."""
    tiles = buffer.view(order.shape).permute(AXES)
    return tiles.reshape(order.whole)[: order.m, : order.n].contiguous()


def pack(c: Tensor, order: PackedOrder) -> Tensor:
    """The buffer of C[m, n], new; what of it is outside C is undefined."""
    buffer = c.new_empty(order.elements)
    sweeps, columns, height, block_m, block_n = order.shape
    if (order.m, order.n) != order.whole:
        whole = c.new_empty(order.whole)
        whole[: order.m, : order.n] = c
        c = whole
    c = c.reshape(sweeps, height, block_m, columns, block_n)
    buffer.view(order.shape).permute(AXES).copy_(c)
    return buffer
