"""The benchmark of what dispatch costs: what it calls, and what it subtracts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.linear.dispatch import CALLS, PAIRS, beyond, candidates
from benchmarks.measuring.paired import Alone, Samples, measure
from overlapc.runtime.linear import op as linear
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.ops import calls_of

MOST_MICROSECONDS = 5
"""Of a host, that an op may take beyond the library call: what the project asks for."""


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


class Forgetful(dict):
    """What an op would know of its specification, were it read anew at every call."""

    def get(self, key, default=None):
        LayerSpec.parse.cache_clear()
        return default


def least_beyond():
    """Of several tries: what runs beside adds to it."""
    names = [name for name in PAIRS if name.startswith("function")]
    tries = [measure(candidates(), Alone(), rounds=15, seed=seed) for seed in range(3)]
    return {name: min(beyond(samples, name)[0] for samples in tries) for name in names}


@pytest.mark.alone
@pytest.mark.parametrize("mutant", [False, True], ids=["", "mutant"])
def test_dispatch_takes_microseconds(monkeypatch, mutant):
    if mutant:
        monkeypatch.setattr(linear, "_callers", Forgetful())
    with torch.no_grad():
        found = least_beyond()
    assert all((one > MOST_MICROSECONDS) == mutant for one in found.values()), found
