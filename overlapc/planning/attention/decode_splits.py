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
"""What the last CTA takes for each `ADDED_NUMBERS` that it reads together, from the L2 cache."""
ADDED_TOGETHER = 8
"""Sums at most that it does, and of larger ones fewer."""
ADDED_NUMBERS = 16 << 10
"""Of sums that a CTA holds at a time: half of the registers of 128 threads."""
AGAIN_RATE = 1.4
"""The same of what other blocks of rows have read: from the L2 cache loads come sooner."""
PRODUCTS_A_BYTE, FEW_PRODUCTS_A_BYTE = 120.0, 60.0
"""Floating-point operations of matrix units while a byte is read, of blocks of `WARP_GROUP` rows or
more and of fewer: 0.6 and 0.3 of 989 TFLOP/s by 4.8 TB/s."""
WARP_GROUP = 64
"""Rows of a product of four warps that wait for nobody."""
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


@dataclass(frozen=True)
class Blocks:
    """How the packed rows of one sequence and head of keys are cut: into blocks of a CTA each, of
    which every one reads the keys."""

    count: int = 1
    """Of them: how often keys are read, once from memory and then from the L2 cache."""
    product_bytes: float = 0.0
    """What the products of one block and one tile take."""
    sums: int = ADDED_NUMBERS // ADDED_TOGETHER
    """Numbers that one CTA leaves for others to add."""


ONE_BLOCK = Blocks()
"""Of few rows, which are multiplied sooner than their keys are read."""


def blocks_of(rows: int, block_m: int, keys: int, dims: int, value_dim: int) -> Blocks:
    """Cut ``rows`` packed rows into blocks of ``block_m``, each of which is multiplied by so many
    keys a tile, of ``dims`` columns with those of their values."""
    rate = PRODUCTS_A_BYTE if block_m >= WARP_GROUP else FEW_PRODUCTS_A_BYTE
    product = 2 * block_m * keys * dims / rate
    return Blocks(-(-rows // block_m), product, block_m * value_dim)


def decode_in(splits: int, rows: int) -> str:
    """Return what reports call work of the decode kernel, of so many rows of each head of queries,
    whose keys are shared out in so many splits: a short prefill is no decode."""
    return f"{'decode' if rows == 1 else 'few rows'}, {splits} split{'s' * (splits > 1)}"


def plan_splits(
    pairs: int, keys: int, block: int, multiprocessors: int, key_bytes: int = 512,
    blocks: Blocks = ONE_BLOCK,
) -> Splits:  # fmt: skip
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
    return min(found, key=lambda splits: predicted(splits, pairs, multiprocessors, size, blocks))


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


def predicted(
    splits: Splits, pairs: int, multiprocessors: int, tile_bytes: int,
    blocks: Blocks = ONE_BLOCK,
) -> float:  # fmt: skip
    """Time of a launch, without what it takes to begin one.

    All CTAs together read as fast as the memory gives, and those of the busiest multiprocessor as
    fast as that takes, from memory or what another block has read from the L2 cache, or multiplies;
    where another is there beside it, a CTA starts while that one reads.
    """
    its = -(-pairs * blocks.count * splits.count // multiprocessors)
    again = (blocks.count - 1) / blocks.count
    each = max(tile_bytes * ((1 - again) / LEAD + again / AGAIN_RATE), blocks.product_bytes)
    busiest = its * splits.tiles_each * each + (its - 1) // RESIDENT * START_BYTES
    reading = max(least(splits.tiles, pairs, multiprocessors, tile_bytes), busiest)
    meeting = 0.0
    if splits.count > 1:
        batches = -(-splits.count * blocks.sums // ADDED_NUMBERS)
        meeting = MEET_BYTES + ADD_BYTES * batches
    return START_BYTES + reading + meeting


def least(tiles: int, pairs: int, multiprocessors: int, tile_bytes: int) -> float:
    """Time in which the memory gives all keys and values."""
    return pairs * tiles * tile_bytes / multiprocessors
