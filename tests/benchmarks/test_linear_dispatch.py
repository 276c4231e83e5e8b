"""The benchmark of what dispatch costs: what it calls, and what it subtracts."""

from __future__ import annotations

import pytest

from benchmarks.linear_dispatch import CALLS, PAIRS, beyond, candidates
from benchmarks.paired import Samples
from overlapc.runtime.ops import calls_of


def test_the_op_takes_the_way_that_it_is_named_after():
    before = dict(calls_of("dispatch"))
    found = candidates()
    for how in ("op", "function"):
        found[f"{how} by flat"]()
        found[f"{how} by the library"]()
    after = calls_of("dispatch")
    for way in ("flat", "library"):
        assert after[way] - before.get(way, 0) == 2 * (CALLS + 1)


def test_differences_are_paired_by_round():
    names = {name for pair in PAIRS.values() for name in pair}
    seconds = {name: (1e-3, 2e-3, 3e-3) for name in names}
    seconds["op by flat"] = tuple(s + 1e-6 * CALLS for s in seconds["flat"])
    samples = Samples(seconds)
    assert beyond(samples, "op by flat, over the same calls") == pytest.approx((1.0, 1.0, 1.0))
    assert beyond(samples, "torch.mm again") == (0, 0, 0)
