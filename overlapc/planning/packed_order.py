"""Where the elements of C lie when a kernel stores its tiles one after another as they complete."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.planning.tiles import Tile


@dataclass(frozen=True)
class PackedOrder:
    """C[m, n] as a buffer of whole tiles, in the order in which they are computed.

    A sweep is computed column by column. As each has as many tile rows, C is a view of the buffer:
    of ``shape``, its dimensions in the order of ``AXES``, then of ``whole``, and of that the first
    m rows and n columns. What of the tiles at the edges is outside C holds nothing.
    """

    m: int
    n: int
    tile: Tile
    """Only its block sizes and its sweep count here."""

    def __post_init__(self) -> None:
        if not packs(self.tile, self.m) or self.n < 1:
            raise ValueError(f"C[{self.m}, {self.n}] is no whole sweeps of tiles {self.tile}")

    @property
    def rows(self) -> int:
        """Tile rows of C."""
        return -(-self.m // self.tile.block_m)

    @property
    def columns(self) -> int:
        """Tiles in one tile row."""
        return -(-self.n // self.tile.block_n)

    @property
    def tiles(self) -> int:
        """Tiles of C."""
        return self.rows * self.columns

    @property
    def elements(self) -> int:
        """Elements of the buffer."""
        return self.tiles * self.tile.elements

    @property
    def shape(self) -> tuple[int, ...]:
        """Sweeps, columns of tiles, tile rows of a sweep, rows and columns of a tile."""
        height = min(self.rows, self.tile.sweep)
        return (self.rows // height, self.columns, height, self.tile.block_m, self.tile.block_n)

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of all tiles."""
        return self.rows * self.tile.block_m, self.columns * self.tile.block_n


AXES = (0, 2, 3, 1, 4)
"""Dimensions of ``PackedOrder.shape``, those of C's rows before those of its columns."""


def packs(tile: Tile, m: int) -> bool:
    """Whether tiles of m rows make whole sweeps: the last would be another view than the others."""
    rows = -(-m // tile.block_m)
    return rows > 0 and rows % min(rows, tile.sweep) == 0
