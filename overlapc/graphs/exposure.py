"""Which work can hide a collective: the GEMMs and collectives of a graph, and what waits for what.

Compute is one lane and communication another. A collective is hidden by a GEMM that neither needs
its result nor is needed to start it, and that no other collective has used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import prod
from operator import or_

import networkx as nx
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.errors import OverlapcError
from overlapc.graphs.chains.gemms import form_of, read_gemm
from overlapc.graphs.collectives import (
    Collective,
    collective_starts,
    functional,
)
from overlapc.graphs.edges import through
from overlapc.graphs.elementwise import is_view, permutation
from overlapc.graphs.refusals import Refused
from overlapc.graphs.values import tensor_facts, value_of
from overlapc.planning.cost import Costs, advance
from overlapc.planning.problem import COLLECTIVES, Problem
from overlapc.planning.target import Target

WAIT = functional.wait_tensor.default

MOST_NODES = 8
"""GEMMs that hide one collective: chosen; each is compiled with an ordering constraint."""

WINDOW = 32
"""How many GEMMs and collectives away a GEMM may stand that hides one: chosen. What is computed
earlier or later than the program says is held that much longer in memory."""


@dataclass(frozen=True)
class Hiding:
    """The work that can run while a collective is on its way, and what that is worth."""

    nodes: tuple[fx.Node, ...]
    """GEMMs, in program order."""
    compute_seconds: float
    """Predicted, of what is left of these GEMMs."""
    collective_seconds: float
    """Predicted, of the collective on an idle link."""
    saved_seconds: float
    """Predicted gain over running the two one after the other, under the target's contention."""
    slowdowns: tuple[float, float]
    """How many times slower compute and the collective run beside each other."""

    def pays(self, margin: float) -> bool:
        """Whether it saves at least that share of the two one after the other."""
        return self.saved_seconds >= margin * (self.compute_seconds + self.collective_seconds)


def gemm_seconds(node: fx.Node, target: Target) -> float:
    """Return the predicted seconds of a GEMM; 0 where the target cannot tell."""
    try:
        gemm = read_gemm(node)
        problem = Problem(gemm.m, gemm.n, gemm.k, gemm.dtype, "all_reduce", 1)
        return Costs(problem, target).gemm(gemm.m)
    except (OverlapcError, Refused):
        return 0.0


def sent_problem(collective: Collective, world_size: int) -> Problem:
    """Return a problem of no rows that a target is asked about a collective with."""
    return Problem(0, 1, 1, "float32", collective.name, world_size)


def collective_seconds(collective: Collective, target: Target, world_size: int) -> float:
    """Return the predicted seconds of a collective on an idle link; 0 where it is unknown."""
    whole = collective.wait if collective.name == "all_gather" else collective.source
    facts = tensor_facts(whole)
    if facts is None or world_size < 2 or collective.name not in COLLECTIVES:
        return 0.0
    size = prod(facts.shape) * getattr(torch, facts.dtype).itemsize
    try:
        link = target.link(sent_problem(collective, world_size))
    except OverlapcError:
        return 0.0
    return link.scaled(link.plain or link.alone, size, world_size)


class Dependencies:
    """The GEMMs and collectives of a graph with their dependencies, and what is already hidden."""

    def __init__(self, graph: fx.Graph) -> None:
        self.data = _edges(graph)
        self.edges = self.data.copy()
        """``data``, and edges that keep what hides a collective between its start and its wait."""
        self.used: dict[fx.Node, float] = {}
        """Share of a GEMM's time in which a collective is on its way."""
        self.hides: dict[fx.Node, set[fx.Node]] = {}
        """The starts of what a GEMM hides."""
        self._ordered = list(self.data)
        self.places = {node: place for place, node in enumerate(self._ordered)}
        """Where each stands in the program, among these nodes only."""
        starts = collective_starts(graph)
        self._next, self._last = dict(pairwise(starts)), dict(pairwise(reversed(starts)))

    def independent(self, collective: Collective) -> list[fx.Node]:
        """Return the GEMMs near a collective that may run while it is on its way, nearest first.

        Near, for what runs out of its place holds memory. The order of collectives counts as a
        dependency: none may be started earlier or later than another than the program says. What
        needs a later collective hides nothing, for the link sends one after the other.
        """
        here = self.places[collective.start]
        near = self._ordered[max(0, here - WINDOW) : here + WINDOW + 1]
        gemms = [node for node in near if form_of(node) is not None]
        if not gemms:
            return []
        bound = nx.ancestors(self.edges, collective.start)
        bound |= nx.descendants(self.edges, collective.wait)
        if later := self._next.get(collective.start):
            bound |= nx.descendants(self.data, later)
        free = [node for node in gemms if node not in bound]
        return sorted(free, key=lambda node: (abs(self.places[node] - here), self.places[node]))

    def hiding(
        self,
        collective: Collective,
        target: Target,
        world_size: int,
        reserved: frozenset[fx.Node] = frozenset(),
    ) -> Hiding | None:
        """Return the nearest work that hides a collective, none of it ``reserved``.

        None where nothing is independent, or the target cannot tell how long anything takes.
        """
        sent = collective_seconds(collective, target, world_size)
        chosen: dict[fx.Node, float] = {}
        for node in self.independent(collective) if sent else ():
            left = gemm_seconds(node, target) * (1 - self.used.get(node, 0.0))
            if node in reserved or left < sent / 100 or not self._is_open(node, collective.start):
                continue
            chosen[node] = left
            if sum(chosen.values()) >= sent or len(chosen) == MOST_NODES:
                break
        return self._by(chosen, collective, target, world_size)

    def by_gradients(
        self,
        collective: Collective,
        target: Target,
        world_size: int,
        gemms: Sequence[fx.Node],
        reserved: frozenset[fx.Node],
    ) -> Hiding | None:
        """Return as what hides a collective the gradients of the weights that ``gemms``, which feed
        it, multiply by: as much compute as those. None unless each has one that hides nothing else.

        Looks at no seconds: what a rank computes, or deals out, may be unlike on others, or be
        nothing, and this is alike.
        """
        chosen: dict[fx.Node, float] = {}
        free = self.independent(collective)
        for gemm in gemms:
            fits = (one for one in free if one not in reserved and one not in self.hides)
            mine = next(
                (one for one in fits if _is_gradient(one, gemm) and one not in chosen), None
            )
            if mine is None:
                return None
            chosen[mine] = gemm_seconds(mine, target)
        return self._by(chosen, collective, target, world_size)

    def _by(
        self, chosen: dict[fx.Node, float], collective: Collective, target: Target, world_size: int
    ) -> Hiding | None:
        """What these GEMMs hide in so many seconds."""
        problem = sent_problem(collective, world_size)
        sent = collective_seconds(collective, target, world_size)
        if not chosen or not target.overlap_gains(problem):
            return None
        computed = sum(chosen.values())
        saved = sent + computed - together(sent, computed, *target.slowdowns(problem))
        nodes = tuple(sorted(chosen, key=self.places.__getitem__))
        return Hiding(nodes, computed, sent, saved, target.slowdowns(problem))

    def _is_open(self, node: fx.Node, start: fx.Node) -> bool:
        """Whether a GEMM that may hide others already can hide this collective too.

        Only neighbours share a GEMM: it runs after both are started, and a third that is waited for
        in between would take up the time of the first.
        """
        hides = self.hides.get(node)
        return not hides or self._next.get(start) in hides or self._last.get(start) in hides

    def take(self, collective: Collective, hiding: Hiding) -> None:
        """Let a collective be hidden: what hides it has to run between its start and its wait."""
        c, d = hiding.slowdowns
        computed = hiding.collective_seconds * d / c
        share = min(1.0, computed / hiding.compute_seconds) if hiding.compute_seconds else 1.0
        for node in hiding.nodes:
            self.edges.add_edge(collective.start, node)
            self.edges.add_edge(node, collective.wait)
            self.hides.setdefault(node, set()).add(collective.start)
            self.used[node] = 1 - (1 - self.used.get(node, 0.0)) * (1 - share)


def together(sent: float, computed: float, c: float, d: float) -> float:
    """Return the seconds of a collective and of compute that are started at once."""
    return min(sent + computed, max(advance(0.0, sent, computed, 0.0, 0.0, c, d)))


def hiding(
    graph: fx.Graph, collective: Collective, target: Target, world_size: int
) -> Hiding | None:
    """Return what could hide one collective of a graph in which nothing is hidden yet."""
    return Dependencies(graph).hiding(collective, target, world_size)


def _is_gradient(node: fx.Node, gemm: fx.Node) -> bool:
    """Whether a GEMM gives the gradient of a weight that another one multiplies rows by: it adds up
    over the same rows, and its result is as large as that weight.

    How the rows lie says so, and no size: on one rank a layer may give as many numbers as another.
    """
    form, own = form_of(gemm), form_of(node)
    assert form is not None
    assert own is not None
    weight = value_of(_source(gemm, form.b))
    rows, is_turned = _origin(_source(gemm, form.a))
    adds_up = (rows, not is_turned), (rows, is_turned)
    operands = _origin(_source(node, own.a)), _origin(_source(node, own.b))
    if not any(one == other for one, other in zip(operands, adds_up, strict=True)):
        return False
    return bool(statically_known_true(value_of(node).numel() == weight.numel()))


def _source(gemm: fx.Node, place: int) -> fx.Node:
    source = gemm.args[place]
    assert isinstance(source, fx.Node)
    return source


def _origin(node: fx.Node) -> tuple[fx.Node, bool]:
    """What a node is a view of, in whatever order of its dimensions, and whether another of them is
    the last one: also of sizes of one, which others need not have."""
    origin, passed = through(node, lambda one: is_view(one) or permutation(one) is not None)
    orders = filter(None, map(permutation, passed))
    return origin, sum(order[-1] != len(order) - 1 for order in orders) % 2 == 1


def _edges(graph: fx.Graph) -> nx.DiGraph:
    """Return what each GEMM, start and wait needs of the others, and the starts in their order.

    An edge that others imply is left out, so that the graph stays small.
    """
    edges = nx.DiGraph()
    nearest: dict[fx.Node, set[fx.Node]] = {}  # the last of them on every way to a node
    bits: dict[fx.Node, int] = {}
    above: dict[fx.Node, int] = {}  # the bits of all that a node needs
    starts, last = set(collective_starts(graph)), set()
    for node in graph.nodes:
        needed = set().union(*(nearest[source] for source in node.all_input_nodes))
        if node in starts:
            needed |= last
            last = {node}
        needed = {one for one in needed if not any(bits[one] & above[other] for other in needed)}
        if node not in starts and node.target is not WAIT and form_of(node) is None:
            nearest[node] = needed
            continue
        bits[node] = 1 << len(bits)
        above[node] = reduce(or_, (above[one] | bits[one] for one in needed), 0)
        nearest[node] = {node}
        edges.add_node(node)
        edges.add_edges_from((one, node) for one in needed)
    return edges
