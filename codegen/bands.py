"""Bands: the groups of rows of C that are announced, and sent, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from overlapc.errors import KernelError

COUNTER_STRIDE = 32
"""int32s from one counter to the next: 128 bytes, so that no two share a cache line."""


@dataclass(frozen=True)
class Run:
    """Consecutive rows that are computed one tile row after another."""

    source: int
    """The first of them in A @ B."""
    target: int
    """Where it is stored in C."""
    rows: int
    """How many they are."""


@dataclass(frozen=True)
class Bands:
    """A partition of the rows of C into bands, in the order in which they complete.

    Every band is contiguous in row-major C, and is made of whole runs.
    """

    runs: tuple[tuple[Run, ...], ...]
    """Rows of each band, in the order in which they are computed."""
    block_m: int
    """Rows of one tile."""

    @classmethod
    def of(cls, rows: Sequence[int], block_m: int) -> Bands:
        """Bands of these rows from the top of C to its bottom; tiles belong to one band each."""
        _require(bool(rows) and all(count > 0 for count in rows), rows, "a band has rows")
        whole = all(count % block_m == 0 for count in rows[:-1])
        _require(whole, rows, f"every band but the last is a multiple of {block_m} rows")
        starts = (0, *accumulate(rows))
        runs = ((Run(at, at, count),) for at, count in zip(starts, rows, strict=False))
        return cls(tuple(runs), block_m)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of each band."""
        return tuple(sum(run.rows for run in runs) for runs in self.runs)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The rows of C of each band."""
        starts = [min(run.target for run in runs) for runs in self.runs]
        return tuple(slice(at, at + rows) for at, rows in zip(starts, self.rows, strict=True))

    @cached_property
    def tile_rows(self) -> tuple[int, ...]:
        """Tile rows in each band."""
        return tuple(sum(self._tall(run) for run in runs) for runs in self.runs)

    def targets(self, tiles_n: int) -> tuple[int, ...]:
        """What each counter reads when its band is complete: its number of tiles."""
        return tuple(tile_rows * tiles_n for tile_rows in self.tile_rows)

    @cached_property
    def table(self) -> tuple[int, ...]:
        """What the kernel reads (int32): the number of tile rows; for each of them, in the order of
        computation, where in the table its run is described; and these descriptions: band, first
        tile row, tile rows, first row of A, rows from there to its place in C, end of A's rows."""
        total = sum(self.tile_rows)
        places, described = [], []
        for group, runs in enumerate(self.runs):
            for run in runs:
                tall = self._tall(run)
                first = len(places)
                places += [1 + total + len(described)] * tall
                moved = run.target - run.source
                described += [group, first, tall, run.source, moved, run.source + run.rows]
        return (total, *places, *described)

    def _tall(self, run: Run) -> int:
        return -(-run.rows // self.block_m)


def _require(holds: bool, rows: Sequence[int], rule: str) -> None:
    if not holds:
        raise KernelError(
            f"These rows are no partition into bands: {rule}.",
            where=f"rows {tuple(rows)}",
            remedy="cut C between tile rows",
        )
