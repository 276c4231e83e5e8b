"""Bands: the groups of whole tile rows of C that are announced, and sent, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from overlapc.errors import KernelError

COUNTER_STRIDE = 32
"""int32s from one counter to the next: 128 bytes, so that no two share a cache line."""


@dataclass(frozen=True)
class Bands:
    """A partition of the rows of C into consecutive bands.

    Every band but the last holds a multiple of ``block_m`` rows: a tile belongs to one band, and a
    band is contiguous in row-major C.
    """

    rows: tuple[int, ...]
    """Rows of C in each band, in the order in which bands complete."""
    block_m: int
    """Rows of one tile."""

    def __post_init__(self) -> None:
        if not self.rows or any(rows < 1 for rows in self.rows):
            raise self._error("every band has at least one row, and there is at least one band")
        if any(rows % self.block_m for rows in self.rows[:-1]):
            raise self._error(f"every band but the last is a multiple of {self.block_m} rows")

    @classmethod
    def of(cls, rows: Sequence[int], block_m: int) -> Bands:
        """The bands with these row counts."""
        return cls(tuple(rows), block_m)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The rows of C of each band."""
        ends = [sum(self.rows[: group + 1]) for group in range(len(self.rows))]
        return tuple(slice(end - rows, end) for end, rows in zip(ends, self.rows, strict=True))

    @cached_property
    def tile_rows(self) -> tuple[int, ...]:
        """Tile rows in each band."""
        return tuple(-(-rows // self.block_m) for rows in self.rows)

    def targets(self, tiles_n: int) -> tuple[int, ...]:
        """What each counter reads when its band is complete: its number of tiles."""
        return tuple(tile_rows * tiles_n for tile_rows in self.tile_rows)

    @cached_property
    def table(self) -> tuple[int, ...]:
        """What the kernel reads (int32): the band of each tile row, then each band's first tile row
        and, last, the number of tile rows."""
        group_of_row = [group for group, rows in enumerate(self.tile_rows) for _ in range(rows)]
        first_rows = [sum(self.tile_rows[:group]) for group in range(len(self.rows) + 1)]
        return (*group_of_row, *first_rows)

    def _error(self, rule: str) -> KernelError:
        return KernelError(
            f"These rows are no partition into bands: {rule}.",
            where=f"rows {self.rows}",
            remedy="cut C between tile rows",
        )
