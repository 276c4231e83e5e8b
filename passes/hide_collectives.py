"""A collective is started, independent GEMMs run, and only then is it waited for.

By default Inductor writes every wait right after its start, so nothing is hidden although nothing
stands in the way. Contract. Same nodes, same values; the order of collectives stays that of the
program. A collective is hidden where that is predicted to save the planner's margin; no GEMM hides
more than its time. One that is cut on one rank and only moved on another would hang: between the
two no size decides, for what ranks compute may be unlike. A chain that may be cut is hidden by the
gradients of its own weights, which take as long as its GEMMs, and else it is cut. Where Inductor's
own reordering is switched on the graph stays as it is, for Inductor does the same. Memory: what
hides a collective runs earlier or later than the program says, and its operands or result, and what
is sent, are held as much longer; ``exposure.WINDOW`` bounds how far a GEMM is moved.
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
from overlapc.graphs.collectives import Collective, Refusal, collective_starts, read_collective
from overlapc.graphs.exposure import Dependencies, Hiding, sent_problem
from overlapc.graphs.faults import unless_faulty
from overlapc.graphs.memory import mutates
from overlapc.graphs.origins import where
from overlapc.graphs.values import tensor_facts
from overlapc.passes.base import Compilation, Fuel, add_site
from overlapc.passes.chain_decisions import decide
from overlapc.passes.overlap_chains import OverlapChains, match
from overlapc.planning.schedule import format_seconds
from overlapc.planning.search import MEASURED_MARGIN, UNMEASURED_MARGIN
from overlapc.planning.target import Target
from overlapc.runtime.ranks.groups import resolve

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
class Exposed:
    """A collective that may be hidden, and the alternative to it."""

    collective: Collective
    target: Target
    world_size: int
    cut: tuple[fx.Node, ...] = ()
    """The GEMMs of its own chain, where that is to be cut; as all ranks decide alike."""

    @property
    def margin(self) -> float:
        """Share of the serial time that hiding must be predicted to save."""
        is_known = self.target.knows(sent_problem(self.collective, self.world_size))
        return MEASURED_MARGIN if is_known else UNMEASURED_MARGIN


@dataclass(frozen=True)
class HideCollectives:
    """Orders independent GEMMs between the start and the wait of a collective."""

    name: str = "hide_collectives"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Hide what pays; each collective that is hidden is a site, and taken."""
        if compilation.is_disabled(self.name) or compilation.options.overlap != "auto":
            return
        exposed, hidden = unless_faulty(lambda: _chosen(graph, compilation), ({}, {}), LEFT)
        by_inductor = inductor_reorders()
        for start in [start for start in exposed if start in hidden]:
            if not by_inductor and not Fuel.take(compilation.options):
                del hidden[start]
                continue
            decision, code = ("kept", "hidden") if by_inductor else ("rewritten", "hidden_by_order")
            reason = _reason(
                hidden[start], is_cut=bool(exposed[start].cut), by_inductor=by_inductor
            )
            add_site(compilation, start, decision, code, reason)
            compilation.taken.add(start)
        if hidden and not by_inductor:
            order(graph, {exposed[start].collective: one for start, one in hidden.items()})


def _chosen(
    graph: fx.Graph, compilation: Compilation
) -> tuple[dict[fx.Node, Exposed], dict[fx.Node, Hiding]]:
    """Collectives that may be hidden, and what hides which of them, by their starts."""
    exposed = {one.collective.start: one for one in _exposed(graph, compilation)}
    return exposed, choose(Dependencies(graph), list(exposed.values())) if exposed else {}


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


def cut_of(start: fx.Node, compilation: Compilation) -> tuple[fx.Node, ...]:
    """Return the GEMMs of the chain that the pass that cuts chains would cut at a collective."""
    if compilation.is_disabled(OverlapChains().name):
        return ()
    chains = match(start)
    for chain in chains if isinstance(chains, list) else ():
        decided = decide(chain, compilation)
        if not isinstance(decided, Refusal) and decided.decision == "rewritten":
            return tuple(gemm.node for gemm in chain.gemms)
    return ()


def choose(dependencies: Dependencies, exposed: list[Exposed]) -> dict[fx.Node, Hiding]:
    """Return what hides which start. A GEMM whose own chain is to be cut hides nothing.

    Those that would be cut come first, so that nothing else has a part in that choice. Once a
    collective is hidden, the GEMMs of its chain are free to hide another: look again.
    """
    hidden: dict[fx.Node, Hiding] = {}
    cut = [one for one in exposed if one.cut]
    for group in (cut, [one for one in exposed if not one.cut]):
        found = True
        while found:
            found = False
            for one in group:
                start = one.collective.start
                if start in hidden:
                    continue
                others = (other.cut for other in cut if other.collective.start not in hidden)
                hiding = _hiding(one, dependencies, frozenset[fx.Node]().union(*others))
                if hiding is not None:
                    dependencies.take(one.collective, hiding)
                    hidden[start], found = hiding, True
    return hidden


def _hiding(
    one: Exposed, dependencies: Dependencies, reserved: frozenset[fx.Node]
) -> Hiding | None:
    """What hides a collective and none of it ``reserved``, where that is better than to leave it,
    or to cut it."""
    known = one.collective, one.target, one.world_size
    if one.cut:
        return dependencies.by_gradients(*known, one.cut, reserved)
    hiding = dependencies.hiding(*known, reserved)
    return hiding if hiding and hiding.pays(one.margin) else None


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


def _reason(hiding: Hiding, *, is_cut: bool, by_inductor: bool) -> str:
    others = len(hiding.nodes) - 1
    gemms = f"the GEMM at {where(hiding.nodes[0])}" + (f" and {others} more" if others else "")
    who = "Inductor's reordering, which is switched on, lets" if by_inductor else "The order lets"
    seconds = [hiding.compute_seconds, hiding.collective_seconds, hiding.saved_seconds]
    compute, sent, saved = map(format_seconds, seconds)
    gradients = ", the gradient of what its own GEMM multiplies by," if is_cut else ""
    return (
        f"{who} {gemms}{gradients} run while it is sent: {compute} of compute beside {sent} of "
        f"communication are predicted to save {saved}."
    )
