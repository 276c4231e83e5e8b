"""Every key goes to one CTA, no CTA goes without, and the device is filled where that pays."""

from __future__ import annotations

from itertools import product

import pytest

from overlapc.planning.attention.decode_splits import Splits, plan_splits, rounds

PAIRS = (1, 2, 8, 13, 64, 500)
KEYS = (1, 63, 64, 65, 1000, 4096, 8191, 131072)
DEVICES = (1, 108, 132)
SIZES = [*product(PAIRS, KEYS, (16, 64), DEVICES)]


@pytest.mark.parametrize(("pairs", "keys", "block", "multiprocessors"), SIZES)
def test_every_tile_has_one_cta_and_every_cta_a_tile(pairs, keys, block, multiprocessors):
    splits = plan_splits(pairs, keys, block, multiprocessors)
    assert [tile for run in splits.runs for tile in run] == [*range(-(-keys // block))]
    assert all(splits.runs)
    assert splits.count == len(splits.runs)


def test_no_keys_are_left_to_one_cta():
    assert plan_splits(8, 0, 64, 132).count == 1


@pytest.mark.parametrize("pairs", [1, 3, 8, 40, 200])
@pytest.mark.parametrize("tiles", [1, 5, 64, 200])
def test_no_other_number_of_ctas_is_predicted_to_be_faster(pairs, tiles):
    found = rounds(plan_splits(pairs, 64 * tiles, 64, 132), pairs, 132)
    assert all(found <= rounds(Splits(tiles, each), pairs, 132) for each in range(1, tiles + 1))


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
    """The mutant that lets one CTA pay for a merge shares these tiles among four for nothing."""
    assert rounds(Splits(12, 12), 89, 132) == rounds(Splits(12, 3), 89, 132) == 13
    assert plan_splits(89, 12 * 64, 64, 132).count == 1


def test_more_ctas_for_longer_sequences():
    counts = [plan_splits(8, keys, 64, 132).count for keys in (64, 512, 2048, 8192)]
    assert counts == sorted(counts)
    assert counts[0] == 1 < counts[-1]


@pytest.mark.parametrize(
    "sizes", [(0, 1, 64, 132), (1, -1, 64, 132), (1, 1, 0, 132), (1, 1, 64, 0)]
)
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="no keys can be shared out"):
        plan_splits(*sizes)
