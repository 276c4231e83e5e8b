"""Seconds of a problem whose GEMM is one generated kernel: waves of tiles, and what each reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

from overlapc.planning.cost import Costs
from overlapc.planning.problem import TILES, Problem
from overlapc.planning.rates import ASSUMED_SHARE
from overlapc.planning.target import Target
from overlapc.planning.tiles import Tile, share_of

PACKED_SHARE = 0.075
"""Of a pass over C that reads and writes it: what it adds that tiles lie one after another
(published: 7.5 % of an RMSNorm after whole tiles in any order, FlashOverlap, arXiv 2504.19519, on
an A800)."""


@dataclass(frozen=True)
class KernelCosts(Costs):
    """As `Costs`, where one persistent kernel computes all groups, in the order of its tiles.

    It holds one CTA on each multiprocessor that the collective does not use, and works in waves of
    as many tiles. Groups are bands: whole tile rows, of every rank's part of C where rows are dealt
    out to ranks. They do not change what a wave takes, as long as each of their sweeps is
    ``height`` tile rows high.
    """

    tiling: Tile
    """Of which all tiles are."""
    height: int = 1
    """Tile rows of each part that bands are multiples of, a power of two up to the sweep."""

    @property
    def unit(self) -> int:
        """What every group but the last is a multiple of, in what groups are made of."""
        return self.problem.band_rows(self.tiling, self.height)

    @property
    def heights(self) -> tuple[int, ...]:
        """Those that there are, ascending: whole sweeps, and halves of them."""
        return tuple(2**power for power in range(self.tiling.sweep.bit_length()))

    def at(self, height: int) -> Self:
        """The same kernel with bands of another height."""
        return self if height == self.height else replace(self, height=height)

    def fits(self, rows: Sequence[int]) -> bool:
        """Whether groups end where they may at this height."""
        return all(count % self.unit == 0 for count in rows[:-1])

    # Tiles and waves

    @property
    def workers(self) -> int:
        """CTAs that compute: one a multiprocessor that is not left to the collective."""
        return max(1, self.rates.resident - self.target.communication_sms)

    @cached_property
    def runs(self) -> int:
        """Pieces of C that share no tile with each other: what ranks are dealt, or all of it."""
        return self.problem.parts * self.problem.blocks

    @cached_property
    def run_tiles(self) -> int:
        """Tile rows of one run of rows."""
        return -(-self.problem.run_rows // self.tiling.block_m)

    @cached_property
    def row_tiles(self) -> int:
        """Tiles in one tile row."""
        return -(-self.problem.n // self.tiling.block_n)

    @cached_property
    def tiles(self) -> int:
        """Of C."""
        return self.runs * self.run_tiles * self.row_tiles

    @cached_property
    def waves(self) -> int:
        """Of tiles, the last of which may be a part of one."""
        return -(-self.tiles // self.workers)

    def tiles_in(self, rows: int, /) -> int:
        """Tiles of the first groups, which have so many rows and are multiples of ``unit``."""
        if rows >= self.size:
            return self.tiles
        p = self.problem
        if p.blocks > 1 and p.run_rows % self.tiling.block_m:
            return rows // p.run_rows * self.run_tiles * self.row_tiles
        return rows // self.tiling.block_m * self.row_tiles

    # Seconds

    def ready(self, rows: int) -> float:
        """Seconds until the last tile of the first ``rows`` rows, groups of which end there."""
        waves = -(-self.tiles_in(rows) // self.workers)
        return self.rates.launch_seconds + waves * self.wave_seconds

    @cached_property
    def wave_seconds(self) -> float:
        """Seconds of a wave, all of which are alike.

        A library has more tiles to choose from, so the kernel is never taken to be the quicker one
        on all multiprocessors.
        """
        elements = self.workers * self.tiling.elements
        stored = elements * self.problem.sent_item_bytes
        beside = self.rates.pointwise_seconds(self.problem.epilogue_bytes) / self.waves
        mine = (
            max(self._multiplying, self._from_l2, self._from_memory)
            + self.target.tile_seconds
            + self.rates.pointwise_seconds(stored)
            + beside
        )
        library = self.gemm(self.problem.m) - self.rates.launch_seconds
        return max(mine, library / -(-self.tiles // self.rates.resident))

    @cached_property
    def _depth(self) -> int:
        """The contracted size in whole steps."""
        return -(-self.problem.k // self.tiling.block_k) * self.tiling.block_k

    @cached_property
    def _multiplying(self) -> float:
        share = self.rates.generated_share or ASSUMED_SHARE
        share *= share_of(self.tiling, self.target.architecture, self.problem.dtype)
        rate = self.rates.flops_per_second * share
        return 2.0 * self.tiling.elements * self.rates.resident * self._depth / rate

    @cached_property
    def _from_l2(self) -> float:
        """Every tile reads its own rows of A and columns of B."""
        if self.target.l2_bytes_per_second is None:
            return 0.0
        sides = self.tiling.block_m + self.tiling.block_n
        moved = self.workers * sides * self._depth * self.problem.item_bytes
        return moved / self.target.l2_bytes_per_second

    @cached_property
    def _from_memory(self) -> float:
        if self.rates.memory_bytes_per_second is None:
            return 0.0
        return self.read_bytes / self.waves / self.rates.memory_bytes_per_second

    @cached_property
    def read_bytes(self) -> float:
        """Bytes of A and B that are read from memory, all waves together.

        The tiles of a wave step along k side by side, so that each of its rows and columns is read
        once. All waves of a sweep have its rows in common, and all sweeps the columns: both are
        read once where A's rows of a sweep, and all of B beside them, stay in the L2 cache. Else
        each sweep reads B again, or each wave if it holds several, and each wave of a sweep A.
        """
        p, sweep = self.problem, self.tiling.sweep
        row, b = p.k * p.item_bytes, p.n * p.k * p.item_bytes
        rows = sweep * self.tiling.block_m * row
        again_a = again_b = 1
        if rows > self.target.l2_bytes:
            again_a = max(1, -(-sweep * self.row_tiles // self.workers))
        if rows + b > self.target.l2_bytes:
            sweeps = self.runs * -(-self.run_tiles // min(self.height, sweep))
            again_b = min(sweeps, self.waves)
        return again_a * p.m * row + again_b * b

    @property
    def reading_seconds(self) -> float:
        """Seconds that whoever reads the result loses by where it was put."""
        return 0.0

    def bound(self) -> float:
        """Seconds of the kernel and the collective when neither waits for the other.

        No groups of this kernel are quicker, at whatever height.
        """
        quickest = self.at(self.heights[-1])
        return max(quickest.ready(self.size), self.least_sent())


@dataclass(frozen=True)
class PackedCosts(KernelCosts):
    """Groups are of tiles, which are stored one after another as they complete.

    So a group ends with a wave wherever that is in C, and no sweep is cut; whoever reads the result
    reads it from its tiles.
    """

    by: ClassVar[str] = TILES

    @property
    def size(self) -> int:
        """Tiles of C."""
        return self.tiles

    @property
    def unit(self) -> int:
        """A tile."""
        return 1

    @property
    def heights(self) -> tuple[int, ...]:
        """Whole sweeps: no group cuts one."""
        return (self.tiling.sweep,)

    def tiles_in(self, tiles: int, /) -> int:
        """The tiles themselves."""
        return tiles

    def sent_bytes(self, tiles: int, /) -> int:
        """Bytes of so many tiles, which are whole at C's edges too."""
        return tiles * self.tiling.elements * self.problem.sent_item_bytes

    @property
    def reading_seconds(self) -> float:
        """What it adds to a pass over the result."""
        p = self.problem
        return self.rates.pointwise_seconds(round(PACKED_SHARE * 2 * p.sent_bytes(p.m)))


def kernel_costs(by: str, problem: Problem, target: Target, tile: Tile) -> KernelCosts:
    """The costs of a kernel with the tile whose groups are rows or tiles, as ``by`` says."""
    costs = (PackedCosts if by == TILES else KernelCosts)(problem, target, tile)
    return costs.at(costs.heights[0])
