"""Every key goes to one CTA, none has much more than another, and the device is filled where that
pays."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from overlapc.planning.attention.decode_splits import (
    ADDED_NUMBERS,
    ADDED_TOGETHER,
    AGAIN_RATE,
    LEAST_TILES,
    ONE_BLOCK,
    WARP_GROUP,
    Blocks,
    Splits,
    added_together,
    blocks_of,
    least,
    plan_splits,
    predicted,
)

PAIRS = (1, 2, 8, 13, 64, 500)
KEYS = (1, 63, 64, 65, 1000, 4096, 8191, 131072)
DEVICES = (1, 108, 132)
SIZES = [*product(PAIRS, KEYS, (16, 64), DEVICES)]
TILE_BYTES = 64 * 512


@pytest.mark.parametrize(("pairs", "keys", "block", "multiprocessors"), SIZES)
def test_every_tile_has_one_cta_and_every_cta_a_tile(pairs, keys, block, multiprocessors):
    splits = plan_splits(pairs, keys, block, multiprocessors)
    assert [tile for run in splits.runs for tile in run] == [*range(-(-keys // block))]
    sizes = [len(run) for run in splits.runs]
    assert splits.count == len(sizes)
    assert splits.tiles_each == max(sizes) <= min(sizes) + 1
    assert splits.count == 1 or min(sizes) >= LEAST_TILES


def test_no_keys_are_left_to_one_cta():
    assert plan_splits(8, 0, 64, 132).count == 1


@pytest.mark.parametrize("pairs", [1, 3, 8, 40, 200])
@pytest.mark.parametrize("tiles", [1, 5, 33, 64, 200])
@pytest.mark.parametrize("key_bytes", [256, 512, 1152])
def test_no_other_number_of_ctas_is_predicted_to_be_faster(pairs, tiles, key_bytes):
    size = 64 * key_bytes
    found = predicted(plan_splits(pairs, 64 * tiles, 64, 132, key_bytes), pairs, 132, size)
    counts = range(1, max(tiles // LEAST_TILES, 1) + 1)
    assert found == min(predicted(Splits(tiles, count), pairs, 132, size) for count in counts)


@pytest.mark.parametrize("multiprocessors", [108, 132, 148])
@pytest.mark.parametrize("pairs", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("keys", [16384, 32768, 131072])
def test_long_sequences_fill_the_device(pairs, keys, multiprocessors):
    splits = plan_splits(pairs, keys, 64, multiprocessors)
    ctas = pairs * splits.count
    waves = -(-ctas // multiprocessors)
    busy = splits.tiles * pairs / (waves * multiprocessors * splits.tiles_each)
    assert ctas >= 0.75 * multiprocessors
    assert busy >= 0.75, f"{busy:.0%} of the time is spent on keys"


@pytest.mark.parametrize("keys", [64, 4096, 131072])
def test_enough_sequences_are_not_shared_out(keys):
    assert plan_splits(132, keys, 64, 132).count == 1


def test_who_computes_alone_adds_nothing_up():
    alone, shared = (predicted(Splits(12, count), 132, 132, TILE_BYTES) for count in (1, 2))
    assert alone < shared
    assert plan_splits(132, 12 * 64, 64, 132).count == 1


def test_more_ctas_for_longer_sequences():
    counts = [plan_splits(8, keys, 64, 132).count for keys in (64, 512, 2048, 8192)]
    assert counts == sorted(counts)
    assert counts[0] == 1 < counts[-1]


def test_more_ctas_of_narrow_keys_where_to_meet_costs_more():
    """A key of fewer bytes is read in less time, and CTAs meet in the same."""
    wide, narrow = (plan_splits(8, 2048, 64, 132, size).count for size in (512, 64))
    assert narrow < wide


def test_no_prediction_is_below_what_the_memory_gives():
    for pairs, tiles, count in product((1, 8, 200), (1, 33, 512), (1, 2, 16)):
        time = predicted(Splits(tiles, count), pairs, 132, TILE_BYTES)
        assert time > least(tiles, pairs, 132, TILE_BYTES)


def test_blocks_of_rows_read_keys_again_from_the_cache():
    """Mutants: all read from memory, or what others have read costs nothing."""
    apart, eight = (
        predicted(Splits(64, 1), 132 * 8 // count, 132, TILE_BYTES, Blocks(count))
        for count in (1, 8)
    )
    once = least(64, 132, 132, TILE_BYTES)
    assert once * 8 / AGAIN_RATE < eight < 0.9 * apart


def test_products_of_many_rows_take_longer_than_to_read_their_keys():
    many = blocks_of(128, 64, 64, 576 + 512, 512)
    assert many.count == 2
    assert many.product_bytes > 64 * 576 * 2
    times = [predicted(Splits(64, 1), 132, 132, 64 * 576 * 2, own)
             for own in (replace(many, product_bytes=0.0), many)]  # fmt: skip
    assert times[1] > times[0]
    assert ONE_BLOCK.product_bytes == 0
    few = blocks_of(128, 16, 64, 576 + 512, 512)
    assert few.product_bytes < many.product_bytes < 64 / 16 * few.product_bytes
    assert few.count * 16 == many.count * WARP_GROUP == 128


def test_larger_sums_take_longer_to_add():
    """Mutant: each takes as long, however large."""
    small, large = (Blocks(sums=sums) for sums in (ADDED_NUMBERS // ADDED_TOGETHER, ADDED_NUMBERS))
    times = [predicted(Splits(64, 8), 8, 132, TILE_BYTES, own) for own in (small, large)]
    assert times[0] < times[1]
    assert times[0] == predicted(Splits(64, 8), 8, 132, TILE_BYTES)
    counts = [plan_splits(8, 8192, 64, 132, 512, own).count for own in (small, large)]
    assert counts[1] < counts[0]


def test_sums_that_are_read_together_fit_registers():
    counts = [added_together(16 * columns) for columns in (64, 128, 256, 512, 2048)]
    assert counts == [ADDED_TOGETHER, ADDED_TOGETHER, 4, 2, 1]


@pytest.mark.parametrize(
    "sizes", [(0, 1, 64, 132), (1, -1, 64, 132), (1, 1, 0, 132), (1, 1, 64, 0), (1, 1, 64, 1, 0)]
)
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="no keys can be shared out"):
        plan_splits(*sizes)
