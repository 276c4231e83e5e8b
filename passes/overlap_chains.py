"""A GEMM and the collective before or after it become one op that overlaps the two.

Contract. The op gives what the graph gave, bit for bit where it runs ``serial``, unless parts are
added up here (`runtime.ranks.sending`). It keeps the collective's place among the graph's other
collectives (``order_collectives`` sees to it). Each
collective is one site, and one that no row count could make faster leaves the graph as it was.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from torch import fx

from overlapc.errors import GroupError
from overlapc.graphs.chains.chain import Chain
from overlapc.graphs.chains.consuming import read_consumer
from overlapc.graphs.chains.producing import read_producer
from overlapc.graphs.collectives import (
    Refusal,
    collective_starts,
    group_of,
    is_ours,
    kind_of,
    read_collective,
)
from overlapc.graphs.faults import fault_at, unless_faulty
from overlapc.graphs.origins import where
from overlapc.graphs.replacing import replace_chain
from overlapc.passes.base import Compilation, Fuel
from overlapc.passes.chain_decisions import Decision, decide, no_target
from overlapc.passes.chain_specs import generated_module, packed_tile, specification
from overlapc.passes.remarks import remarks
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.reporting.records import Site
from overlapc.runtime import ops  # registers torch.ops.overlapc
from overlapc.runtime.ranks.groups import resolve
from overlapc.runtime.spec import ChainSpec

log = logging.getLogger(__name__)

OPERATIONS = ("", "sum", "avg")
"""Reductions of parts that are sums of sums; empty where nothing is reduced."""
UNSAID = "of a chain nothing is said beside the reason for its plan"


@dataclass(frozen=True)
class OverlapChains:
    """Overlaps every collective with the GEMMs that feed or read it, where it pays."""

    name: str = "overlap_chains"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Match, decide and rewrite each collective of the graph, in program order."""
        for start in collective_starts(graph):
            if is_ours(start) or start in compilation.taken:
                continue
            site = self._site(graph, start, compilation)
            log.info("%s %s at %s: %s", site.decision, site.kind, site.where, site.reason)
            compilation.sites.append(site)

    def _site(self, graph: fx.Graph, start: fx.Node, compilation: Compilation) -> Site:
        chain, decided = self._decided(start, compilation)
        if chain is None or isinstance(decided, Refusal):
            assert isinstance(decided, Refusal)
            return _refused(start, decided, compilation, chain)
        spec = None
        if decided.decision == "rewritten":
            try:
                spec = _specified(chain, decided.plan, compilation)
            except Exception as error:  # as above
                return _refused(start, fault_at(start, error), compilation, chain)
        if spec is not None and not Fuel.take(compilation.options):
            reason = "The fuel that option 'fuel' gives is used up."
            decided = replace(decided, decision="kept", reason=reason, code="fuel")
        if compilation.explains and decided.plan.code != "forced":
            target = compilation.target_for(chain.gemms[0].device, chain.collective.group)
            plan = decided.plan
            more = unless_faulty(lambda: remarks(chain, plan, target), "", UNSAID)
            decided = replace(decided, reason=decided.reason + more)
        decided = replace(decided, reason=compilation.noted(start, decided.reason))
        site = Site(
            id=compilation.next_site_id(),
            kind=chain.kind,
            graph=compilation.graph_kind,
            where=where(chain.gemms[0].node),
            group=chain.collective.group,
            shape=_shape(chain, decided.plan.problem),
            decision=decided.decision,
            plan=decided.plan,
            reason=decided.reason,
            code=decided.code,
        )
        if site.decision == "rewritten" and spec is not None:
            packed = _packed_order(decided.plan)
            replace_chain(graph, chain, spec.text(), packed)
        return site

    def _decided(
        self, start: fx.Node, compilation: Compilation
    ) -> tuple[Chain | None, Decision | Refusal]:
        if why := compilation.why_disabled(self.name):
            return None, Refusal(start, "disabled", why)
        try:
            found = match(start)
            if isinstance(found, Refusal):
                return None, found
            # An all-to-all between two GEMMs may be either's.
            return max(((chain, decide(chain, compilation)) for chain in found), key=_is_rewritten)
        except Exception as error:  # nothing is changed yet: the program is compiled without us
            return None, fault_at(start, error)


def _specified(chain: Chain, plan: Plan, compilation: Compilation) -> ChainSpec:
    """What the op of the next site is told; its module is kept where dumps are asked for."""
    target = compilation.target_for(chain.gemms[0].device, chain.collective.group)
    site = compilation.next_site_id()
    spec = specification(chain, target, compilation, site, packed_tile(plan))
    if compilation.options.dump and plan.schedule == "signaled":
        compilation.modules[site] = generated_module(chain, spec, target, plan.tile)
    return spec


def _packed_order(plan: Plan) -> PackedOrder | None:
    tile = packed_tile(plan)
    return None if tile is None else PackedOrder(plan.problem.m, plan.problem.n, tile)


def match(start: fx.Node) -> list[Chain] | Refusal:
    """Read the chains that the collective could be part of, or say why there is none."""
    collective = read_collective(start)
    if isinstance(collective, Refusal):
        return collective
    if collective.reduce not in OPERATIONS:
        return Refusal(
            start,
            "reduction",
            f"The reduction is {collective.reduce!r}, and only sums and averages are rewritten.",
        )
    try:
        ranks = resolve(collective.group).size()
    except GroupError as error:
        return no_target(start, error)
    found = []
    if collective.name != "all_gather":
        found.append(read_producer(collective, ranks))
    if collective.name in ("all_gather", "all_to_all"):
        found.append(read_consumer(collective, ranks))
    chains = [chain for chain in found if isinstance(chain, Chain)]
    refusals = [refusal for refusal in found if isinstance(refusal, Refusal)]
    # Of an all-to-all, what stands between it and the GEMM says more than that there is none.
    return chains or next((r for r in refusals if r.code != "no_gemm"), refusals[0])


def _is_rewritten(one: tuple[Chain, Decision | Refusal]) -> tuple[bool, bool]:
    """Whether a chain is rewritten, and planned at all. What it saves is no measure, for ranks
    may compute unlike sizes: of equals the first is taken."""
    _, decided = one
    is_planned = isinstance(decided, Decision)
    return is_planned and decided.decision == "rewritten", is_planned


def _refused(
    start: fx.Node, refusal: Refusal, compilation: Compilation, chain: Chain | None = None
) -> Site:
    return Site(
        id=compilation.next_site_id(),
        kind=chain.kind if chain else refusal.kind or kind_of(start),
        graph=compilation.graph_kind,
        where=where(chain.gemms[0].node if chain else start),
        group=group_of(start),
        decision="refused",
        reason=compilation.noted(start, refusal.reason),
        code=refusal.code,
    )


def _shape(chain: Chain, problem: Problem) -> str:
    is_static = all(gemm.static for gemm in chain.gemms)
    rows = str(problem.m) if is_static else f"~{problem.m}"
    return f"{rows}x{problem.n}x{problem.k} {problem.dtype}"


assert ops  # imported for what it registers
