"""Long blocks of rows begin first, of as many heads as a cache holds the keys and values of."""

from __future__ import annotations

import heapq
from itertools import product

import pytest

from overlapc.planning.attention.launch_order import TOGETHER_BYTES, heads_together

MULTIPROCESSORS = 132
BLOCK = 128
"""Rows, and keys of a step."""
CAUSAL = [(1, 4, 1024), (8, 4, 512), (1, 4, 2048), (1, 4, 4096), (1, 4, 8192), (4, 4, 4096),
          (1, 1, 8192), (1, 4, 16384), (1, 4, 32768), (1, 8, 4096)]  # fmt: skip
"""Sequences, query heads of each of eight heads of keys of 128 columns, rows."""


def steps_until_done(units: int, blocks: int, together: int) -> float:
    """Of the device, where each CTA begins where one has ended; of each as many as its block has
    tiles, and one."""
    free = [0.0] * MULTIPROCESSORS
    for first in range(0, units, together):
        for turn, _ in product(range(blocks), range(min(together, units - first))):
            heapq.heapreplace(free, free[0] + blocks - turn + 1)
    return max(free)


@pytest.mark.parametrize("shape", CAUSAL, ids=str)
def test_no_multiprocessor_waits_long_for_the_last_ones(shape):
    """Mutants: one group of heads after another, or one head; as many as fit, and then the rest."""
    batch, groups, rows = shape
    units, blocks = batch * 8 * groups, rows // BLOCK
    together = heads_together(units, groups, rows * 256 * 2)
    least = max(units * blocks * (blocks + 3) / 2 / MULTIPROCESSORS, blocks + 1)
    found = steps_until_done(units, blocks, together) / least
    assert found <= 1.05, f"{found:.3f} of the least"
    assert found <= steps_until_done(units, blocks, 1) / least


def test_one_head_after_another_is_seen_to_be_slow():
    assert steps_until_done(32, 16, 1) > 1.2 * steps_until_done(32, 16, 32)


@pytest.mark.parametrize("keys", [1, 512, 8192, 1 << 17])
def test_keys_of_heads_that_are_read_at_a_time_fit_a_cache(keys):
    """Mutants: all heads; a part of a group, whose heads read the same keys."""
    for units, groups in ((1, 1), (96, 3), (320, 10), (7, 1)):
        together = heads_together(units, groups, keys * 512)
        assert together % groups == 0 < together <= units
        at_once, heads = together // groups, units // groups
        assert at_once == 1 or at_once * keys * 512 <= TOGETHER_BYTES
        times = -(-heads // max(1, TOGETHER_BYTES // (keys * 512)))
        assert at_once * (times - 1) < heads <= at_once * times
