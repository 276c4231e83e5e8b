"""Seconds of a problem whose GEMM is one generated kernel, in waves of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

from overlapc.planning.kernel_reads import KernelReads
from overlapc.planning.packed_order import packs
from overlapc.planning.problem import TILES, Problem
from overlapc.planning.rates import ASSUMED_SHARE
from overlapc.planning.target import Target
from overlapc.planning.tiles import SWEEPS, Tile, share_of

PACKED_SHARE = 0.075
"""Share of a pass over C (read and write) by which it takes longer where tiles lie one after
another (published: 7.5 % of an RMSNorm after whole tiles in any order, FlashOverlap, arXiv
2504.19519, on an A800)."""


@dataclass(frozen=True)
class KernelCosts(KernelReads):
    """As `Costs`, where one persistent kernel computes all groups, in the order of its tiles.

    It holds one CTA on each multiprocessor that the collective does not use, and works in waves of
    as many tiles. Groups are bands: whole tile rows, of every rank's part of C where rows are dealt
    out to ranks. They do not change what a wave takes, as long as each of their sweeps is
    ``height`` tile rows high.
    """

    height: int = 1
    """Tile rows of each part that bands are multiples of, a power of two up to the sweep."""

    @property
    def unit(self) -> int:
        """Rows (or tiles) that every group but the last is a multiple of."""
        return self.unit_at(self.height)

    def unit_at(self, height: int) -> int:
        """The ``unit`` of bands of ``height`` tile rows."""
        return self.problem.band_rows(self.tiling, height)

    @property
    def heights(self) -> tuple[int, ...]:
        """Heights that bands may have, ascending: 1, 2, and so on up to the sweep."""
        return SWEEPS[: SWEEPS.index(self.tiling.sweep) + 1]

    @property
    def sweeps(self) -> tuple[int, ...]:
        """Sweeps in which this kernel may visit its tiles; a launch says which."""
        return SWEEPS

    @property
    def swept(self) -> tuple[Self, ...]:
        """This kernel with each of its ``sweeps``."""
        return tuple(replace(self, tiling=self.tiling.swept(sweep)) for sweep in self.sweeps)

    def at(self, height: int) -> Self:
        """This kernel with bands of ``height`` tile rows."""
        return self if height == self.height else replace(self, height=height)

    def fitting(self, rows: Sequence[int]) -> Self:
        """This kernel with the highest bands that these groups are made of; else the lowest
        bands."""

        def fits(height: int) -> bool:
            unit = self.unit_at(height)
            return all(count % unit == 0 for count in rows[:-1])

        return self.at(next(filter(fits, reversed(self.heights)), self.heights[0]))

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

    @property
    def read_bytes(self) -> float:
        """Bytes of A and B that are read from memory, all waves together."""
        return self.read_at(self.height)

    @property
    def reading_seconds(self) -> float:
        """Seconds that whoever reads the result loses by where it was put."""
        return 0.0

    def bound(self) -> float:
        """Seconds of the kernel and the collective when neither waits for the other.

        No groups of this kernel are quicker, at whatever height, with whatever sweep.
        """
        least = min(self.swept, key=lambda kernel: kernel.read_at(kernel.heights[-1]))
        quickest = least.at(least.heights[-1])
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

    def unit_at(self, height: int) -> int:
        """A tile."""
        return 1

    @property
    def heights(self) -> tuple[int, ...]:
        """As high as any sweep: no group cuts one."""
        return SWEEPS[-1:]

    @property
    def sweeps(self) -> tuple[int, ...]:
        """Sweeps that tile rows fill: all are whole, or there is less than one."""
        m = self.problem.m
        return tuple(sweep for sweep in SWEEPS if packs(self.tiling.swept(sweep), m))

    def _bands(self, groups: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """All of C, whatever the groups are."""
        yield self.tiles, self.runs, self.run_tiles

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
