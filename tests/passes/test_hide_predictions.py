"""What hiding is predicted to save is saved, in random graphs that a simulation runs."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from overlapc.graphs import exposure
from overlapc.graphs.chains.gemms import form_of
from overlapc.graphs.collectives import collective_starts
from overlapc.graphs.exposure import Dependencies
from overlapc.options import Options
from overlapc.passes import hide_collectives
from overlapc.passes.base import Compilation
from overlapc.passes.hide_collectives import HideCollectives
from tests.passes import lockstep
from tests.passes.test_hidden_work import hidden, is_right
from tests.passes.test_hide_collectives import all_reduce, inputs
from tests.targets import SLOW_LINK

pytestmark = pytest.mark.usefixtures("fake_group")


def random_graph(seed):
    """GEMMs and all-reduces of one shape that read each other at random."""
    choose = random.Random(seed)
    kinds = [choose.choice(("mm", "mm", "reduce", "add")) for _ in range(choose.randint(4, 14))]

    def function(x, w, y, v):
        made = [x, y]
        square = w @ v.t()
        for kind in kinds:
            one, other = choose.choice(made), choose.choice(made)
            if kind == "mm":
                made.append(one @ square)
            elif kind == "reduce":
                made.append(all_reduce(one.cumsum(0)))
            else:
                made.append(one + other)
        return tuple(made[2:])

    return lockstep.traced(function, *inputs())


def serial_seconds(order, gemms, sent):
    """One lane for compute and one for the link; a wait stops compute until its own is done."""
    now = free = 0.0
    done = {}
    for node in order:
        if node in gemms:
            now += gemms[node]
        elif node in sent:
            free = max(now, free) + sent[node]
            done[node] = free
        elif node.target is exposure.WAIT:
            (start,) = node.all_input_nodes
            now = max(now, done[start])
    return now


def emission(order, ordered_waits):
    """As Inductor writes it: a wait that nothing holds back follows its start at once."""
    for node in order:
        if node.target is not exposure.WAIT or node in ordered_waits:
            yield node
        yield from (
            user
            for user in node.users
            if user.target is exposure.WAIT
            and (user not in ordered_waits and node.target is not exposure.WAIT)
        )


SEEDS = (*range(60), 153, 883)
"""The last two tell who lets two collectives share a GEMM though a third stands between them."""


def hidden_and_timed(seed, patch):
    """Predicted and simulated seconds that hiding saves in a random graph, and that graph."""
    module, choose = random_graph(seed), random.Random(seed)
    nodes = list(module.graph.nodes)
    gemms = {n: choose.uniform(1, 5) for n in nodes if form_of(n) is not None}
    sent = {n: choose.uniform(1, 9) for n in collective_starts(module.graph)}
    kept = {}
    patch.setattr(exposure, "gemm_seconds", lambda node, target: gemms[node])
    patch.setattr(exposure, "collective_seconds", lambda one, target, size: sent[one.start])
    patch.setattr(hide_collectives, "cut_of", lambda start, compilation: ())
    patch.setattr(hide_collectives, "order", lambda graph, found: kept.update(found))
    compilation = Compilation(Options(), "inference", lambda device, group: SLOW_LINK, "graph")
    HideCollectives().apply(module.graph, compilation)
    between, waits = {}, {}
    for one, how in kept.items():
        waits[one.wait] = list(how.nodes)
        for node in how.nodes:
            between.setdefault(node, []).append(one.start)
    order = hide_collectives.sorted_with(module.graph, between, waits)
    assert collective_starts(module.graph) == [node for node in order if node in sent]
    before = serial_seconds(emission(nodes, {}), gemms, sent)
    after = serial_seconds(emission(order, waits), gemms, sent)
    return sum(how.saved_seconds for how in kept.values()), before - after, module


@pytest.mark.parametrize("block", range(4))
def test_random_graphs_save_what_is_predicted(block, monkeypatch):
    predicted = []
    for seed in SEEDS[block::4]:
        with pytest.MonkeyPatch.context() as patch:
            promised, saved, module = hidden_and_timed(seed, patch)
        assert saved >= promised - 1e-9
        predicted.append(promised)
        monkeypatch.setattr(hide_collectives, "cut_of", lambda start, compilation: ())
        assert is_right(module, hidden(module)[0])
    assert sum(promised > 0 for promised in predicted) > 3


def independent_of_edges_only(self, collective):
    """What forgets that a later collective is sent after this one."""
    bound = nx.ancestors(self.edges, collective.start)
    bound |= nx.descendants(self.edges, collective.wait)
    return [node for node in self.places if form_of(node) is not None and node not in bound]


MUTANTS = {
    "shared_by_all": (Dependencies, "_is_open", lambda self, node, start: True),
    "later_collectives": (Dependencies, "independent", independent_of_edges_only),
    "used_up": (
        Dependencies,
        "take",
        lambda self, one, how: self.edges.add_edges_from(
            edge for node in how.nodes for edge in ((one.start, node), (node, one.wait))
        ),
    ),
    "pulled": (hide_collectives, "_pull", lambda *args: None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_prediction_is_caught(name, monkeypatch):
    monkeypatch.setattr(*MUTANTS[name])
    for seed in SEEDS:
        with pytest.MonkeyPatch.context() as patch:
            promised, saved, _ = hidden_and_timed(seed, patch)
        if saved < promised - 1e-9:
            return
    pytest.fail("no random graph tells the mutant from the pass")
