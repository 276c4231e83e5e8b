"""A GEMM and the collective before or after it become one op that overlaps the two.

Contract. The op gives what the graph gave, bit for bit where it runs ``serial``, unless parts are
added up here (`runtime.sending`). It keeps the collective's place among the graph's other
collectives (``order_collectives`` sees to it). Each
collective is one site, and one that no row count could make faster leaves the graph as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.codegen.module import module_text
from overlapc.errors import GroupError, KernelError, OverlapcError, ProblemError, TargetError
from overlapc.graphs.chain import (
    Chain,
    batches_of_varying_rows,
    blocks_of,
    meta_operands,
    only_rows_vary,
    operand_facts,
    pointwise_steps,
)
from overlapc.graphs.collectives import (
    Refusal,
    collective_starts,
    group_of,
    is_ours,
    kind_of,
    read_collective,
)
from overlapc.graphs.consuming import read_consumer
from overlapc.graphs.origins import place_of, where
from overlapc.graphs.producing import read_producer
from overlapc.graphs.readers import takes_map
from overlapc.graphs.replacing import replace_chain
from overlapc.graphs.values import hint_of, tensor_facts
from overlapc.passes.base import Compilation, Fuel
from overlapc.passes.remarks import remarks
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.problem import ITEM_BYTES, SENT_BYTES, TILES, Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import MEASURED_MARGIN
from overlapc.planning.target import Target
from overlapc.planning.tiles import Tile
from overlapc.reporting.records import Site
from overlapc.runtime import ops  # registers torch.ops.overlapc
from overlapc.runtime.groups import resolve
from overlapc.runtime.kernels import kernel_spec_of
from overlapc.runtime.plans import plan_call, remember
from overlapc.runtime.signaled import why_not_signaled
from overlapc.runtime.sizing import problem_of
from overlapc.runtime.spec import ChainSpec

log = logging.getLogger(__name__)

OPERATIONS = ("", "sum", "avg")
"""Reductions of parts that are sums of sums; empty where nothing is reduced."""

# Row counts at which a site of symbolic size is tried: if none of them pays, none in between does.
TRIED_ROWS = tuple(2**power for power in range(18))


@dataclass(frozen=True)
class Decision:
    """What becomes of a chain: the plan at its hinted size, and why."""

    decision: str
    plan: Plan
    reason: str
    code: str


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
        if decided.decision == "rewritten" and not Fuel.take(compilation.options):
            reason = "The fuel that option 'fuel' gives is used up."
            decided = replace(decided, decision="kept", reason=reason, code="fuel")
        if compilation.explains and decided.plan.code != "forced":
            target = compilation.target_for(chain.gemms[0].device, chain.collective.group)
            more = remarks(chain, decided.plan, target)
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
        if site.decision == "rewritten":
            self._rewrite(graph, chain, site, compilation)
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
            # An all-to-all between two GEMMs may be either's: the one that gains more takes it.
            return max(((chain, decide(chain, compilation)) for chain in found), key=_gain)
        except Exception as error:  # nothing is changed yet: the program is compiled without us
            log.exception("a fault of overlapc at %s", where(start))
            reason = f"A fault of overlapc, which its log tells, please report it: {error!r}."
            return None, Refusal(start, "internal", reason)

    def _rewrite(self, graph: fx.Graph, chain: Chain, site: Site, compilation: Compilation) -> None:
        target = compilation.target_for(chain.gemms[0].device, chain.collective.group)
        plan = site.plan
        tile = packed_tile(plan)
        spec = specification(chain, target, compilation, site.id, tile)
        if compilation.options.dump and plan is not None and plan.schedule == "signaled":
            compilation.modules[site.id] = generated_module(chain, spec, target, plan.tile)
        packed = None
        if tile is not None and plan is not None:
            packed = PackedOrder(plan.problem.m, plan.problem.n, tile)
        replace_chain(graph, chain, spec.text(), packed)


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
        return _no_target(start, error)
    found = []
    if collective.name != "all_gather":
        found.append(read_producer(collective, ranks))
    if collective.name in ("all_gather", "all_to_all"):
        found.append(read_consumer(collective, ranks))
    chains = [chain for chain in found if isinstance(chain, Chain)]
    refusals = [refusal for refusal in found if isinstance(refusal, Refusal)]
    # Of an all-to-all, what stands between it and the GEMM says more than that there is none.
    return chains or next((r for r in refusals if r.code != "no_gemm"), refusals[0])


def decide(chain: Chain, compilation: Compilation) -> Decision | Refusal:
    """Choose what becomes of a chain, from its sizes, the target and the options only."""
    schedule, node = compilation.options.overlap, chain.gemms[0].node
    if schedule == "off":
        return Refusal(node, "off", "Option overlap is 'off'.")
    try:
        target = compilation.target_for(chain.gemms[0].device, chain.collective.group)
    except (TargetError, GroupError) as error:
        return _no_target(node, error)
    if why := _why_no_dtype(chain):
        return Refusal(node, "dtype", f"{why}: torch runs it as it is.")
    remember(target)
    try:
        problem = _problem(chain, target, compilation)
        plan = plan_call(target.fingerprint, schedule, problem)
    except (ProblemError, GroupError, TargetError) as error:
        return _no_plan(node, error)
    # What only some ranks rewrite would hang: where rows differ by rank, or are a hint that may
    # come from another rank's cache, these do not decide.
    is_static = all(gemm.static for gemm in chain.gemms) and not chain.sends
    try:
        tried = [plan] if is_static else _tried_plans(chain, problem, target, schedule)
    except (ProblemError, TargetError) as error:
        return _no_plan(node, error)
    if plan.schedule == "signaled" and (why := _why_not_signaled(chain, plan, target, compilation)):
        reason = f"{plan.reason} The library computes its groups: {why}"
        return Decision("rewritten", plan, reason, "not_signaled")
    pays = [other for other in tried if _beats_inductor(other, target, chain)]
    if not pays and schedule == "auto":
        if plan.schedule == "serial":
            return Decision("kept", plan, plan.reason, plan.code)
        reason = (
            "The plan pays only beside pointwise work that Inductor would fuse into one kernel."
        )
        return Decision("kept", plan, reason, "lost_fusion")
    if plan.schedule == "serial" and pays:
        reason = f"The rows vary, and at {pays[0].problem.m} it pays: {pays[0].reason}"
        return Decision("rewritten", plan, reason, "varying_rows")
    return Decision("rewritten", plan, plan.reason, plan.code)


def _why_no_dtype(chain: Chain) -> str:
    """Which dtype nothing is planned for; empty where there is none."""
    sent = tensor_facts(chain.collective.source)
    if (dtype := chain.gemms[0].dtype) not in ITEM_BYTES:
        return f"GEMMs of {dtype} are not planned, only of {', '.join(ITEM_BYTES)}"
    if sent is not None and sent.dtype not in SENT_BYTES:
        return f"What is sent is {sent.dtype}, and only {', '.join(SENT_BYTES)} are planned"
    return ""


def packed_tile(plan: Plan | None) -> Tile | None:
    """Return the tiles that readers of a plan's result read; None where they read rows."""
    return plan.tile if plan and plan.by == TILES and len(plan.rows) > 1 else None


def _why_not_signaled(chain: Chain, plan: Plan, target: Target, compilation: Compilation) -> str:
    """Why no kernel would compute the chain here; empty where one does."""
    spec = specification(chain, target, compilation, "", packed_tile(plan))
    device = torch.device(chain.gemms[0].device)
    return why_not_signaled(
        spec, target, meta_operands(chain), device, resolve(chain.collective.group)
    )


def _tried_plans(chain: Chain, problem: Problem, target: Target, schedule: str) -> list[Plan]:
    batches = batches_of_varying_rows(chain)
    tried = _tried_batches(problem, batches) if batches else _tried(problem)
    # Of measured plans every rank knows the same, whatever rows it has.
    measured = [tuned.problem for tuned in target.tuned if _differs_in_rows(tuned.problem, problem)]
    return [plan_call(target.fingerprint, schedule, other) for other in (*tried, *measured)]


def _differs_in_rows(one: Problem, other: Problem) -> bool:
    """Whether two problems are equal but for how many rows they have, or not even for that."""
    without = [replace(p.resolved(), m=0, epilogue_bytes=0) for p in (one, other)]
    return without[0] == without[1]


def _beats_inductor(plan: Plan, target: Target, chain: Chain) -> bool:
    """Whether a cut pays beside a graph whose pointwise work is one kernel.

    The op runs it step by step, and so does the serial plan that the cut is weighed against.
    """
    if plan.schedule == "serial":
        return False
    if pointwise_steps(chain) < 2 or not plan.problem.epilogue_bytes:
        return True
    serial = inductor_seconds(plan.problem, target, chain)
    return plan.predicted_seconds < (1 - MEASURED_MARGIN) * serial


def inductor_seconds(problem: Problem, target: Target, chain: Chain) -> float:
    """Predicted seconds where nothing is overlapped, and pointwise work is one kernel."""
    passes = max(1, pointwise_steps(chain))
    fused = replace(problem, epilogue_bytes=problem.epilogue_bytes // passes)
    return plan_call(target.fingerprint, "serial", fused).predicted_seconds


def _tried(problem: Problem) -> Iterator[Problem]:
    multiple = problem.granule
    for rows in TRIED_ROWS:
        if rows >= multiple:
            m = rows // multiple * multiple
            extra = problem.epilogue_bytes * m // problem.m if problem.m else 0
            yield replace(problem, m=m, epilogue_bytes=extra)


def _tried_batches(problem: Problem, batches: int) -> Iterator[Problem]:
    """So many GEMMs of other rows: groups are made of whole ones."""
    for rows in TRIED_ROWS:
        each = rows * problem.world_size
        m = batches * each
        extra = problem.epilogue_bytes * m // problem.m if problem.m else 0
        yield replace(problem, m=m, row_multiple=each, epilogue_bytes=extra)


def _no_target(node: fx.Node, error: OverlapcError) -> Refusal:
    text = f"There is nothing to plan for: {error.what} Remedy: {error.remedy}."
    return Refusal(node, "no_target", text)


def _no_plan(node: fx.Node, error: OverlapcError) -> Refusal:
    return Refusal(node, "no_plan", f"It cannot be planned: {error.what} Remedy: {error.remedy}.")


def _gain(one: tuple[Chain, Decision | Refusal]) -> tuple[bool, float]:
    """Whether a chain is rewritten, and the predicted seconds that it saves; refusals come last.

    Seconds are no measure between ranks whose rows differ: there the first of equals is taken.
    """
    chain, decided = one
    if isinstance(decided, Refusal):
        return False, -1.0
    saved = decided.plan.serial_seconds - decided.plan.predicted_seconds
    is_alike = only_rows_vary(chain) and not chain.sends
    return decided.decision == "rewritten", saved if is_alike else 0.0


def _problem(chain: Chain, target: Target, compilation: Compilation) -> Problem:
    shapes, dtypes = operand_facts(chain)
    spec = specification(chain, target, compilation, "")
    ranks = resolve(chain.collective.group).size()
    receives = [hint_of(size) for size in chain.receives]
    return problem_of(spec, shapes, dtypes, ranks, receives, blocks_of(chain))


def specification(
    chain: Chain,
    target: Target,
    compilation: Compilation,
    site: str,
    packed: Tile | None = None,
) -> ChainSpec:
    """Return what the inserted op has to know beside its tensors."""
    options = compilation.options
    return ChainSpec(
        kind=chain.kind,
        target=target.fingerprint,
        options=compilation.choices,
        schedule=options.overlap,
        reduce=chain.collective.reduce,
        site=site,
        verify=options.verify,
        wait_seconds=options.agreement_seconds,
        place=place_of(chain.gemms[0].node),
        axis=chain.axis,
        program=chain.program,
        takes_map=takes_map(chain),
        packed=packed,
    )


def generated_module(chain: Chain, spec: ChainSpec, target: Target, tile: Tile | None) -> str:
    """Return the text of the Triton module that a signaled plan of this chain runs."""
    try:
        return module_text(kernel_spec_of(spec, target, meta_operands(chain), tile)[0])
    except KernelError as error:
        return f'"""No module is generated, and the library computes the bands.\n\n{error}\n"""\n'


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
