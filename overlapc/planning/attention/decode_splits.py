"""How many CTAs share the keys of one sequence and head when few query rows attend to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MOST_ROWS = 64
"""Packed rows, of all query heads that share one of keys, that one CTA holds."""
START_TILES = 1.0
"""What a CTA costs before its first tile arrives, in the time of a tile; assumed, not measured."""
MERGE_TILES = 0.25
"""What the last CTA pays for each partial sum that it adds: 16 rows of 128 float32 are a quarter of
the bytes of 64 keys and values of 128 in a half precision."""


@dataclass(frozen=True)
class Splits:
    """Tiles of keys dealt out in runs of ``tiles_each``; the last run may be shorter."""

    tiles: int
    """Of one sequence."""
    tiles_each: int
    """Of one CTA."""

    @property
    def count(self) -> int:
        """CTAs that share one sequence and head; at least one, which writes what no key gives."""
        return max(-(-self.tiles // self.tiles_each), 1)

    @property
    def runs(self) -> tuple[range, ...]:
        """The tiles of each CTA."""
        starts = range(0, self.tiles, self.tiles_each)
        return tuple(range(at, min(at + self.tiles_each, self.tiles)) for at in starts)


def decode_in(splits: int) -> str:
    """Return what reports call a decode whose keys are shared out in so many splits."""
    return f"decode, {splits} split{'s' * (splits > 1)}"


def plan_splits(pairs: int, keys: int, block: int, multiprocessors: int) -> Splits:
    """Share ``keys`` of each of ``pairs`` sequences and heads out, in tiles of ``block`` keys.

    The fewest predicted rounds of tiles win: every multiprocessor computes one CTA at a time, for
    one that reads as deep as the kernel does takes what it can get of the memory's rate alone. Of
    equals the fewest CTAs. It depends on sizes only, so that every rank and every call decides
    alike, and results do not change with what else runs. ValueError on sizes below one.
    """
    if min(pairs, block, multiprocessors) < 1 or keys < 0:
        raise ValueError(f"no keys can be shared out: {pairs=}, {keys=}, {block=}, "
                         f"{multiprocessors=}")  # fmt: skip
    tiles = -(-keys // block)
    found = (Splits(tiles, size) for size in _sizes(tiles))
    return min(found, key=lambda splits: rounds(splits, pairs, multiprocessors))


def _sizes(tiles: int) -> Iterator[int]:
    """How many tiles a CTA may take, falling; of all numbers of CTAs that share tiles alike, only
    that of the least: at most two square roots of tiles."""
    size = max(tiles, 1)
    yield size
    while size > 1:
        size = -(-tiles // -(-tiles // (size - 1)))
        yield size


def rounds(splits: Splits, pairs: int, multiprocessors: int) -> float:
    """Predicted time of all, in the time that one CTA takes for one tile."""
    waves = -(-pairs * splits.count // multiprocessors)
    merging = MERGE_TILES * splits.count if splits.count > 1 else 0.0
    return waves * (splits.tiles_each + START_TILES) + merging
