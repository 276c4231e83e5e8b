"""A collective is started, independent GEMMs run, and only then is it waited for.

By default Inductor writes every wait right after its start, so nothing is hidden although nothing
stands in the way. Contract. Same nodes, same values; the order of collectives stays that of the
program. A collective is hidden where that is predicted to save more than cutting its own chain
would, by the planner's margin; no GEMM hides more than its time. A collective that is cut on one
rank and only moved on another would hang: between the two no size decides that may differ by rank.
Where Inductor's own reordering is
switched on the graph stays as it is, for Inductor does the same. Memory: what hides a collective
runs earlier or later than the program says, and its operands or result, and what is sent, are held
as much longer; ``exposure.WINDOW`` bounds how far a GEMM is moved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor.fx_passes.control_dependencies import preserve_node_ordering
from torch.utils._ordered_set import OrderedSet

from overlapc.errors import GroupError, TargetError
from overlapc.graphs.algebra import mutates
from overlapc.graphs.collectives import Collective, Refusal, collective_starts, read_collective
from overlapc.graphs.exposure import Chains, Hiding
from overlapc.graphs.faults import unless_faulty
from overlapc.graphs.gemms import read_gemm
from overlapc.graphs.origins import where
from overlapc.graphs.values import COMMON_SIZE, common_sizes, tensor_facts
from overlapc.passes.base import Compilation, Fuel, add_site
from overlapc.passes.chain_decisions import decide
from overlapc.passes.overlap_chains import OverlapChains, match
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import format_seconds
from overlapc.planning.search import MEASURED_MARGIN, UNMEASURED_MARGIN
from overlapc.planning.target import Target
from overlapc.runtime.groups import resolve

log = logging.getLogger(__name__)

LEFT = "collectives stay where they are, for what would hide them is not known"

SINKING = (
    "reorder_compute_for_overlap",
    "reorder_communication_preserving_peak_memory",
    "sink_waits",
    "sink_waits_iterative",
)
"""Inductor's scheduler passes that move a wait away from its start."""


@dataclass(frozen=True)
class Cut:
    """The GEMMs of a collective's own chain, and what cutting it is predicted to save."""

    gemms: tuple[fx.Node, ...] = ()
    saved_seconds: float = 0.0
    is_alike: bool = True
    """Its sizes are the same on all ranks, so that they may decide against it."""


@dataclass(frozen=True)
class Exposed:
    """A collective that may be hidden, and the alternative to it."""

    collective: Collective
    target: Target
    world_size: int
    cut: Cut

    @property
    def margin(self) -> float:
        """Share of the serial time that hiding must be predicted to save."""
        problem = Problem(0, 1, 1, "float32", self.collective.name, self.world_size)
        return MEASURED_MARGIN if self.target.knows(problem) else UNMEASURED_MARGIN


@dataclass(frozen=True)
class HideCollectives:
    """Orders independent GEMMs between the start and the wait of a collective."""

    name: str = "hide_collectives"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Hide what pays; each collective that is hidden is a site, and taken."""
        if compilation.is_disabled(self.name) or compilation.options.overlap != "auto":
            return
        with common_sizes():
            exposed, hidden = unless_faulty(lambda: _chosen(graph, compilation), ({}, {}), LEFT)
        by_inductor = inductor_reorders()
        for start in [start for start in exposed if start in hidden]:
            if not by_inductor and not Fuel.take(compilation.options):
                del hidden[start]
                continue
            decision, code = ("kept", "hidden") if by_inductor else ("rewritten", "hidden_by_order")
            reason = _reason(hidden[start], exposed[start].cut, by_inductor=by_inductor)
            add_site(compilation, start, decision, code, reason)
            compilation.taken.add(start)
        if hidden and not by_inductor:
            order(graph, {exposed[start].collective: one for start, one in hidden.items()})


def _chosen(
    graph: fx.Graph, compilation: Compilation
) -> tuple[dict[fx.Node, Exposed], dict[fx.Node, Hiding]]:
    """Collectives that may be hidden, and what hides which of them, by their starts."""
    exposed = {one.collective.start: one for one in _exposed(graph, compilation)}
    return exposed, choose(Chains(graph), list(exposed.values())) if exposed else {}


def inductor_reorders() -> bool:
    """Return whether Inductor is configured to let compute run while a collective does."""
    if inductor_config.aten_distributed_optimizations.enable_overlap_scheduling:
        return True
    passes = inductor_config.reorder_for_compute_comm_overlap_passes
    sinks = any(one in SINKING for one in passes)
    return inductor_config.reorder_for_compute_comm_overlap and sinks


def _exposed(graph: fx.Graph, compilation: Compilation) -> Iterable[Exposed]:
    for start in collective_starts(graph):
        collective = read_collective(start)
        facts = tensor_facts(start)
        if not isinstance(collective, Collective) or facts is None:
            continue
        try:
            size = resolve(collective.group).size()
            target = compilation.target_for(facts.device, collective.group)
        except (GroupError, TargetError) as error:
            log.debug("%s is not hidden: %s", start, error.what)
            continue
        yield Exposed(collective, target, size, cut_of(start, compilation))


def cut_of(start: fx.Node, compilation: Compilation) -> Cut:
    """Return what the pass that cuts chains would make of a collective."""
    chains = (
        Refusal(start, "", "") if compilation.is_disabled(OverlapChains().name) else match(start)
    )
    best = Cut()
    for chain in chains if isinstance(chains, list) else ():
        decided = decide(chain, compilation)
        if isinstance(decided, Refusal) or decided.decision != "rewritten":
            continue
        saved = decided.plan.serial_seconds - decided.plan.predicted_seconds
        gemms = tuple(gemm.node for gemm in chain.gemms)
        if chain.sends:  # another rank may have other numbers to send, and find that it gains
            return Cut(gemms, saved, is_alike=False)
        if saved > best.saved_seconds:
            best = Cut(gemms, saved)
    return best


def choose(chains: Chains, exposed: list[Exposed]) -> dict[fx.Node, Hiding]:
    """Return what hides which start. A GEMM whose own chain is to be cut hides nothing.

    Those that would be cut come first, so that nothing else has a part in that choice.
    """
    hidden: dict[fx.Node, Hiding] = {}
    cut = [one for one in exposed if one.cut.gemms]
    _hide([one for one in cut if one.cut.is_alike], cut, chains, hidden, chains.unlike)
    _hide([one for one in exposed if not one.cut.gemms], cut, chains, hidden, frozenset())
    return hidden


def _hide(
    exposed: list[Exposed],
    cut: list[Exposed],
    chains: Chains,
    hidden: dict[fx.Node, Hiding],
    excluded: frozenset[fx.Node],
) -> None:
    """Hide what pays, by GEMMs that are not excluded.

    Once a collective is hidden, the GEMMs of its chain are free to hide another: look again.
    """
    found = True
    while found:
        found = False
        for one in exposed:
            start = one.collective.start
            if start in hidden:
                continue
            reserved = excluded.union(
                *(other.cut.gemms for other in cut if other.collective.start not in hidden)
            )
            hiding = chains.hiding(one.collective, one.target, one.world_size, reserved)
            if hiding and hiding.pays(one.margin) and hiding.saved_seconds > one.cut.saved_seconds:
                chains.take(one.collective, hiding)
                hidden[start], found = hiding, True


def order(graph: fx.Graph, hidden: dict[Collective, Hiding]) -> None:
    """Put every GEMM that hides a collective between its start and its wait, and tie it there."""
    gemms: dict[fx.Node, OrderedSet[fx.Node]] = {}
    waits: dict[fx.Node, OrderedSet[fx.Node]] = {}
    for collective, hiding in hidden.items():
        waits[collective.wait] = OrderedSet(hiding.nodes)
        for node in hiding.nodes:
            gemms.setdefault(node, OrderedSet()).add(collective.start)
    nodes = sorted_with(graph, gemms, waits)
    output = nodes[-1]
    for node in nodes[:-1]:
        if node.op != "placeholder":
            output.prepend(node)
    after = {**gemms, **waits}
    preserve_node_ordering(graph, {node: after[node] for node in nodes if node in after})


def sorted_with(
    graph: fx.Graph,
    gemms: dict[fx.Node, OrderedSet[fx.Node]],
    waits: dict[fx.Node, OrderedSet[fx.Node]],
) -> list[fx.Node]:
    """Return the nodes in their order, but each of ``gemms`` and ``waits`` after what it maps to.

    A GEMM is pulled right behind the starts, with all that it needs: a collective in between would
    be waited for first. Collectives keep their order, and nothing passes a node that writes into a
    tensor.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    edges = nx.DiGraph(_program_edges(position))
    edges.add_edges_from((one, node) for node in gemms for one in gemms[node])
    edges.add_edges_from((one, node) for node in waits for one in waits[node])
    edges.add_edges_from(pairwise(collective_starts(graph)))
    key = {node: (place, -1) for node, place in position.items()}
    for node, starts in gemms.items():
        _pull(node, max(position[start] for start in starts), key, position)
    return list(nx.lexicographical_topological_sort(edges, key=key.__getitem__))


def _program_edges(nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield what each node needs; what writes into a tensor lets nothing pass, nor does the end."""
    since: list[fx.Node] = []
    wall = None
    for node in nodes:
        yield from ((source, node) for source in node.all_input_nodes)
        if wall is not None:
            yield wall, node
        if mutates(node) or node.op == "output":
            yield from ((source, node) for source in since)
            since, wall = [], node
        else:
            since.append(node)


def _pull(
    node: fx.Node, place: int, key: dict[fx.Node, tuple[int, int]], position: dict[fx.Node, int]
) -> None:
    """Let ``node`` and what it needs come right behind the node at ``place``."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if key[node] > (place, position[node]):
            key[node] = (place, position[node])
            waiting.extend(node.all_input_nodes)


def _reason(hiding: Hiding, cut: Cut, *, by_inductor: bool) -> str:
    others = len(hiding.nodes) - 1
    gemms = f"the GEMM at {where(hiding.nodes[0])}" + (f" and {others} more" if others else "")
    who = "Inductor's reordering, which is switched on, lets" if by_inductor else "The order lets"
    seconds = [hiding.compute_seconds, hiding.collective_seconds, hiding.saved_seconds]
    compute, sent, saved = map(format_seconds, seconds)
    instead = f", more than the {format_seconds(cut.saved_seconds)} of a cut" if cut.gemms else ""
    varies = not all(gemm.static for gemm in map(read_gemm, hiding.nodes))
    sizes = f", were every size that varies {COMMON_SIZE}" if varies else ""
    return (
        f"{who} {gemms} run while it is sent: {compute} of compute beside {sent} of communication "
        f"are predicted to save {saved}{instead}{sizes}."
    )
