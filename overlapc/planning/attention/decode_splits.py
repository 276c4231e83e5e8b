"""How many CTAs share the keys of one sequence and head when few query rows attend to them.

Times are in bytes here: what one multiprocessor reads meanwhile of its equal share of the memory's
rate. Every constant is assumed, of an H200; none was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MOST_ROWS = 64
"""Packed rows, of all query heads that share one of keys, that one CTA holds."""
LEAST_TILES = 2
"""Tiles of a CTA below which fewer CTAs share the keys; chosen: to start one costs about one."""
LATENCY_BYTES = 36 << 10
"""Of a load while the memory is busy: a microsecond of 4.8 TB/s among 132 multiprocessors."""
START_BYTES = LATENCY_BYTES
"""What a CTA waits for its first tile."""
MEET_BYTES = LATENCY_BYTES
"""What CTAs that share keys take to leave their sums and to count themselves: two ways to the L2
cache, one after the other."""
ADD_BYTES = LATENCY_BYTES // 2
"""What the last CTA takes for each batch of sums that it reads together, from the L2 cache."""
ADDED_TOGETHER = 8
"""At most, and of larger sums fewer."""
ADDED_NUMBERS = 16 << 10
"""Of sums that a CTA holds at a time: half of the registers of 128 threads."""
LEAD = 1.1
"""Times its share that a multiprocessor reads while others have nothing to read: its port would
take three times that, but a CTA has only so many loads under way."""
RESIDENT = 2
"""CTAs that a multiprocessor holds at a time; a test of machine code counts them."""


@dataclass(frozen=True)
class Splits:
    """Tiles of keys dealt out to so many CTAs in runs, of which none is longer than another by more
    than one tile."""

    tiles: int
    """Of one sequence."""
    count: int
    """CTAs that share one sequence and head; at least one, which writes what no key gives."""

    @property
    def tiles_each(self) -> int:
        """Of the CTA that has the most."""
        return -(-self.tiles // self.count)

    @property
    def runs(self) -> tuple[range, ...]:
        """The tiles of each CTA."""
        each, more = divmod(self.tiles, self.count)
        starts = [index * each + min(index, more) for index in range(self.count + 1)]
        return tuple(map(range, starts, starts[1:]))


def decode_in(splits: int) -> str:
    """Return what reports call a decode whose keys are shared out in so many splits."""
    return f"decode, {splits} split{'s' * (splits > 1)}"


def plan_splits(
    pairs: int, keys: int, block: int, multiprocessors: int, key_bytes: int = 512
) -> Splits:
    """Share ``keys`` of each of ``pairs`` sequences and heads out, in tiles of ``block`` keys, each
    of ``key_bytes`` bytes with its value.

    The least predicted time wins, of equals the fewest CTAs. It depends on sizes only, so that
    every rank and every call decides alike, and results do not change with what else runs.
    ValueError on sizes below one.
    """
    if min(pairs, block, multiprocessors, key_bytes) < 1 or keys < 0:
        raise ValueError(f"no keys can be shared out: {pairs=}, {keys=}, {block=}, "
                         f"{multiprocessors=}, {key_bytes=}")  # fmt: skip
    tiles = -(-keys // block)
    found = (Splits(tiles, count) for count in _counts(tiles))
    size = block * key_bytes
    return min(found, key=lambda splits: predicted(splits, pairs, multiprocessors, size))


def _counts(tiles: int) -> Iterator[int]:
    """How many CTAs may share tiles, rising; of all numbers that leave the one with the most tiles
    as many, only the least: at most two square roots of tiles."""
    yield 1
    each = tiles
    while each > LEAST_TILES:
        count = -(-tiles // (each - 1))
        if tiles // count < LEAST_TILES:
            return
        yield count
        each = -(-tiles // count)


def added_together(numbers: int) -> int:
    """How many sums of so many float32 numbers the last CTA reads before it adds the first."""
    return max(min(ADDED_NUMBERS // numbers, ADDED_TOGETHER), 1)


def predicted(splits: Splits, pairs: int, multiprocessors: int, tile_bytes: int) -> float:
    """Time of a launch, without what it takes to begin one.

    All CTAs together read as fast as the memory gives, and those of the busiest multiprocessor as
    fast as that takes; where another is there beside it, a CTA starts while that one reads.
    """
    its = -(-pairs * splits.count // multiprocessors)
    busiest = its * splits.tiles_each * tile_bytes / LEAD + (its - 1) // RESIDENT * START_BYTES
    reading = max(least(splits.tiles, pairs, multiprocessors, tile_bytes), busiest)
    meeting = 0.0
    if splits.count > 1:
        meeting = MEET_BYTES + ADD_BYTES * -(-splits.count // ADDED_TOGETHER)
    return START_BYTES + reading + meeting


def least(tiles: int, pairs: int, multiprocessors: int, tile_bytes: int) -> float:
    """Time in which the memory gives all keys and values."""
    return pairs * tiles * tile_bytes / multiprocessors
