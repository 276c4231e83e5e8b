"""How a generated kernel goes through the tiles of C, and what of A and B it reads from memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from overlapc.planning.cost import Costs
from overlapc.planning.tiles import Tile


@dataclass(frozen=True)
class KernelReads(Costs):
    """Costs of which one persistent kernel computes all groups: its tiles, waves and sweeps.

    It holds one CTA on each multiprocessor that the collective does not use, and works in waves of
    as many tiles, which lie in sweeps of tile rows.
    """

    tiling: Tile
    """The configuration of every tile, and the sweep in which tiles are visited."""

    @cached_property
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
        """Tiles of C."""
        return self.runs * self.run_tiles * self.row_tiles

    @cached_property
    def waves(self) -> int:
        """Waves of tiles; the last may be a part of one."""
        return -(-self.tiles // self.workers)

    def tiles_in(self, rows: int, /) -> int:
        """Tiles of the first groups, which have so many rows and are multiples of ``unit``."""
        if rows >= self.size:
            return self.tiles
        p = self.problem
        if p.blocks > 1 and p.run_rows % self.tiling.block_m:
            return rows // p.run_rows * self.run_tiles * self.row_tiles
        return rows // self.tiling.block_m * self.row_tiles

    def read_at(self, height: int) -> float:
        """Bytes of A and B that are read from memory, all waves together.

        With bands of so many tile rows or more, of which sweeps have at least as many. A kernel
        that reads less has no longer waves.
        """
        sweep = min(self.tiling.sweep, self.run_tiles)
        sweeps = self.runs * -(-self.run_tiles // min(height, sweep))
        return self._a_bytes * self._a_times(sweep) + self._b_bytes * self._b_times(sweep, sweeps)

    def bytes_read_in(self, groups: Sequence[int]) -> float:
        """As ``read_at``, in exactly these bands; the rest of a band that fills no sweep is a lower
        one."""
        a_bytes, sweeps = 0.0, 0
        for tiles, runs, rows in self._bands(groups):
            sweep = min(self.tiling.sweep, rows)
            a_bytes += self._a_bytes * tiles / self.tiles * self._a_times(sweep)
            sweeps += runs * -(-rows // sweep)
        return a_bytes + self._b_bytes * self._b_times(self.highest_in(groups), sweeps)

    def highest_in(self, groups: Sequence[int]) -> int:
        """Tile rows of the highest sweep in these groups, which decides on the order of tiles."""
        return min(self.tiling.sweep, max(rows for _, _, rows in self._bands(groups)))

    def _bands(self, groups: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """For each group: its tiles, the runs that they lie in, and tile rows of such a run."""
        before, end = 0, 0
        for count in groups:
            end += count
            tiles = self.tiles_in(end) - before
            rows = -(-tiles // (self.row_tiles * self.problem.parts))
            runs = -(-rows // self.run_tiles)
            yield tiles, self.problem.parts * runs, -(-rows // runs)
            before += tiles

    @property
    def _a_bytes(self) -> int:
        return self.problem.m * self.problem.k * self.problem.item_bytes

    @property
    def _b_bytes(self) -> int:
        return self.problem.n * self.problem.k * self.problem.item_bytes

    def _a_times(self, sweep: int) -> float:
        """How often A is read from memory.

        The tiles of a wave step along k side by side, so that each of its rows and columns is read
        once. The waves of a sweep have its rows in common: they stay in the L2 cache where the
        columns of a wave fit beside them. Else each wave reads them again, of which a sweep meets
        so many on average.
        """
        columns = min(self.row_tiles, -(-self.workers // sweep)) * self.tiling.block_n
        row = self.problem.k * self.problem.item_bytes
        if self._row_bytes(self._held(sweep)) + columns * row <= self.target.l2_bytes:
            return 1
        tiles = sweep * self.row_tiles
        return min(self.waves, 1 + (tiles - gcd(tiles, self.workers)) / self.workers)

    def _b_times(self, sweep: int, sweeps: int) -> int:
        """How often B is read from memory.

        Sweeps have all columns in common: they stay where the rows that are read until a column's
        turn comes again fit beside them, of a wave, and unless that is whole sweeps, of one more.
        Else each sweep reads them again, or each wave if it holds several.
        """
        rows = self._held(sweep)
        if self.workers % (sweep * self.row_tiles):
            rows += sweep
        if self._row_bytes(rows) + self._b_bytes <= self.target.l2_bytes:
            return 1
        return min(sweeps, self.waves)

    def _held(self, sweep: int) -> int:
        """Tile rows of a wave, or of the sweep that it is a part of."""
        return max(sweep, -(-self.workers // self.row_tiles))

    def _row_bytes(self, tile_rows: int) -> int:
        """Bytes of A in so many tile rows, if there are so many."""
        rows = min(tile_rows, self.runs * self.run_tiles) * self.tiling.block_m
        return rows * self.problem.k * self.problem.item_bytes
