"""What a GEMM can hide, that values stay, and mistakes that are seen."""

from __future__ import annotations

import copy
from itertools import chain

import networkx as nx
import pytest
import torch

from overlapc.graphs import exposure
from overlapc.graphs.chains.gemms import form_of
from overlapc.graphs.collectives import Collective, collective_starts, read_collective
from overlapc.graphs.exposure import Dependencies, hiding
from overlapc.options import Options
from overlapc.passes import hide_collectives
from overlapc.passes.base import Compilation
from overlapc.passes.hide_collectives import HideCollectives
from tests.passes import lockstep
from tests.passes.test_hide_collectives import (
    HIDDEN,
    after_it,
    all_reduce,
    inputs,
    needed_by_the_gemm,
    needs_the_gemm,
    two_for_one_gemm,
)
from tests.targets import SLOW_LINK, machine

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("own_caches"),
]


def traced(function):
    module = lockstep.traced(function, *inputs())
    found = [read_collective(start) for start in collective_starts(module.graph)]
    return module, [one for one in found if isinstance(one, Collective)]


def test_a_gemm_hides_no_more_than_its_time():
    module, (first, second) = traced(two_for_one_gemm)
    dependencies = Dependencies(module.graph)
    slow = machine("slower", 8e6)  # 64 KiB take 8.192 ms, the GEMM 8.389 ms
    one = dependencies.hiding(first, slow, 2)
    assert one is not None
    assert one.saved_seconds == pytest.approx(8.192e-3)
    dependencies.take(first, one)
    rest = dependencies.hiding(second, slow, 2)
    assert rest is not None
    assert rest.compute_seconds == pytest.approx(8.389e-3 - 8.192e-3, rel=1e-2)
    assert rest.saved_seconds == pytest.approx(rest.compute_seconds)
    assert hiding(module.graph, second, slow, 2) == hiding(module.graph, first, slow, 2)


def test_a_slowdown_on_both_sides_is_paid():
    module, (one,) = traced(after_it)
    contended = machine("contended", 4e7)
    object.__setattr__(contended, "compute_slowdown", 1.25)
    free, paid = (hiding(module.graph, one, target, 2) for target in (SLOW_LINK, contended))
    assert free is not None
    assert paid is not None
    assert paid.saved_seconds == pytest.approx(free.saved_seconds - 0.25 / 1.25 * 3.2768e-3)


def test_far_work_is_not_brought_near(monkeypatch):
    module, (one,) = traced(after_it)
    assert hiding(module.graph, one, SLOW_LINK, 2) is not None
    monkeypatch.setattr(exposure, "WINDOW", 1)
    assert hiding(module.graph, one, SLOW_LINK, 2) is None


def test_the_order_of_collectives_is_kept():
    """The GEMM feeds the first collective, so it may not run after the second has started."""

    def first_needs_it(x, w, y, v):
        a = all_reduce((y @ v).cumsum(0))
        return a, all_reduce(x.sin())

    module, (_, second) = traced(first_needs_it)
    assert hiding(module.graph, second, SLOW_LINK, 2) is None


def hidden(module, **options):
    after = copy.deepcopy(module)
    compilation = Compilation(
        Options(**options), "inference", lambda device, group: SLOW_LINK, "graph"
    )
    HideCollectives().apply(after.graph, compilation)
    after.graph.lint()
    return after, compilation


def is_right(before, after):
    feeds = [inputs(seed) for seed in range(2)]
    wanted, found = lockstep.run(before, feeds), lockstep.run(after, feeds)
    pairs = zip(chain.from_iterable(wanted), chain.from_iterable(found), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("function", HIDDEN, ids=lambda function: function.__name__)
def test_the_values_stay(function):
    module = lockstep.traced(function, *inputs())
    after, compilation = hidden(module)
    assert len(compilation.sites) == len(compilation.taken) == len(collective_starts(module.graph))
    assert is_right(module, after)


@pytest.mark.parametrize("function", [needs_the_gemm, needed_by_the_gemm])
def test_forgetting_a_dependency_is_caught(function, monkeypatch):
    def all_gemms(self, collective):
        return [node for node in self.places if form_of(node) is not None]

    monkeypatch.setattr(Dependencies, "independent", all_gemms)
    monkeypatch.setattr(hide_collectives, "cut_of", lambda start, compilation: ())
    with pytest.raises(nx.NetworkXUnfeasible):
        hidden(lockstep.traced(function, *inputs()))


def test_forgetting_what_is_used_up_is_caught(monkeypatch):
    module, (first, second) = traced(two_for_one_gemm)
    dependencies = Dependencies(module.graph)
    one = dependencies.hiding(first, SLOW_LINK, 2)
    assert one is not None
    dependencies.take(first, one)
    dependencies.used.clear()
    again = dependencies.hiding(second, SLOW_LINK, 2)
    assert again is not None
    assert again.compute_seconds == one.compute_seconds
