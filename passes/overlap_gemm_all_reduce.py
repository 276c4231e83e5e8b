"""GEMM -> views -> all-reduce -> wait becomes one op that overlaps the two.

Contract. The op gives what the wait gave, bit for bit where it runs ``serial``. The GEMM and the
views have no other user. The collective keeps its place among the graph's other collectives
(``order_collectives`` sees to it). A site that no row count could make faster leaves the graph as
it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import fx

from overlapc.chain import (
    AllReduce,
    Chain,
    Gemm,
    Refusal,
    collective_starts,
    group_of,
    kind_of,
    read_all_reduce,
    read_gemm,
)
from overlapc.codegen.module import module_text
from overlapc.errors import GroupError, KernelError, ProblemError, TargetError
from overlapc.graph import copy_facts, through_views, value_of, where
from overlapc.passes.base import Compilation, Fuel
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.reporting.records import Site
from overlapc.runtime import ops  # registers torch.ops.overlapc
from overlapc.runtime.groups import resolve
from overlapc.runtime.plans import plan_call, remember
from overlapc.runtime.schedules import OPERATIONS
from overlapc.runtime.signaled import kernel_spec
from overlapc.runtime.spec import ChainSpec

log = logging.getLogger(__name__)

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
class OverlapGemmAllReduce:
    """Overlaps every all-reduce of a GEMM's result with that GEMM, where it pays."""

    name: str = "overlap_gemm_all_reduce"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Match, decide and rewrite each all-reduce of the graph, in program order."""
        for start in collective_starts(graph):
            site = self._site(graph, start, compilation)
            log.info("%s %s at %s: %s", site.decision, site.kind, site.where, site.reason)
            compilation.sites.append(site)

    def _site(self, graph: fx.Graph, start: fx.Node, compilation: Compilation) -> Site:
        kind = kind_of(start)
        site = partial(Site, kind=kind, graph=compilation.graph_kind, id=compilation.next_site_id())
        disabled = Refusal(start, "disabled", f"Option disable leaves out {self.name}.")
        chain = disabled if compilation.is_disabled(self.name) else match(start)
        if isinstance(chain, Refusal):
            return _refused(site, chain, where=where(start), group=group_of(start))
        site = partial(
            site,
            where=where(chain.gemm.node),
            group=chain.collective.group,
            shape=_shape(chain.gemm),
        )
        try:
            target = compilation.target_for(chain.gemm.device, chain.collective.group)
        except (TargetError, GroupError) as error:
            return _refused(
                site, Refusal(start, "no_target", f"There is nothing to plan for: {error.what}")
            )
        decided = decide(chain, target, compilation)
        if isinstance(decided, Refusal):
            return _refused(site, decided)
        made = site(
            decision=decided.decision, plan=decided.plan, reason=decided.reason, code=decided.code
        )
        if made.decision == "rewritten":
            # Symbolic strides would be compared, and so guarded, to generate a text.
            static = compilation.options.dump and chain.gemm.static
            if static and decided.plan.schedule == "signaled":
                compilation.modules[made.id] = generated_module(chain.gemm, target)
            rewrite(graph, chain, specification(chain, target, compilation, made.id))
        return made


def _refused(site: Callable[..., Site], refusal: Refusal, **known: str) -> Site:
    return site(decision="refused", reason=refusal.reason, code=refusal.code, **known)


def match(start: fx.Node) -> Chain | Refusal:
    """Read the chain that ends in the all-reduce ``start``, or say why there is none."""
    collective = read_all_reduce(start)
    if isinstance(collective, Refusal):
        return collective
    if collective.reduce not in OPERATIONS:
        return Refusal(
            start,
            "reduction",
            f"The reduction is {collective.reduce!r}, and only sums and averages are rewritten.",
        )
    producer, views = through_views(collective.source)
    gemm = read_gemm(producer)
    if isinstance(gemm, Refusal):
        return gemm
    for node in (producer, *views):
        if len(node.users) != 1:
            return Refusal(
                node,
                "other_users",
                f"The GEMM's result is also read by {_other_user(node, collective)}, which needs "
                "it before it is reduced.",
            )
    return Chain(gemm=gemm, views=views, collective=collective)


def _other_user(node: fx.Node, collective: AllReduce) -> str:
    others = [str(user.target) for user in node.users if user is not collective.start]
    return others[-1]


def decide(chain: Chain, target: Target, compilation: Compilation) -> Decision | Refusal:
    """Choose what becomes of a chain on ``target``, from its sizes and the options only."""
    schedule = compilation.options.overlap
    if schedule == "off":
        return Refusal(chain.gemm.node, "off", "Option overlap is 'off'.")
    remember(target)
    try:
        problem = _problem(chain)
        plan = plan_call(target.fingerprint, schedule, problem)
    except (ProblemError, GroupError, TargetError) as error:
        return Refusal(
            chain.gemm.node,
            "no_plan",
            f"It cannot be planned: {error.what} Remedy: {error.remedy}.",
        )
    pays = [plan] if plan.schedule != "serial" else []
    if not chain.gemm.static and not pays:
        tried = (replace(problem, m=m) for m in TRIED_ROWS)
        plans = (plan_call(target.fingerprint, schedule, other) for other in tried)
        pays = [other for other in plans if other.schedule != "serial"]
    if not pays and schedule == "auto":
        return Decision("kept", plan, plan.reason, plan.code)
    if not Fuel.take(compilation.options):
        return Decision("kept", plan, "The fuel that option 'fuel' gives is used up.", "fuel")
    if plan.schedule == "serial" and pays:
        reason = f"The rows vary, and at {pays[0].problem.m} it pays: {pays[0].reason}"
        return Decision("rewritten", plan, reason, "varying_rows")
    return Decision("rewritten", plan, plan.reason, plan.code)


def _problem(chain: Chain) -> Problem:
    gemm = chain.gemm
    return Problem(
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        dtype=gemm.dtype,
        collective="all_reduce",
        world_size=resolve(chain.collective.group).size(),
    )


def specification(chain: Chain, target: Target, compilation: Compilation, site: str) -> ChainSpec:
    """Return what the inserted op has to know beside its tensors."""
    options = compilation.options
    return ChainSpec(
        target=target.fingerprint,
        options=options.digest(),
        schedule=options.overlap,
        reduce=chain.collective.reduce,
        site=site,
        verify=options.verify,
        wait_seconds=options.agreement_seconds,
    )


def generated_module(gemm: Gemm, target: Target) -> str:
    """Return the text of the Triton module that a signaled plan of this GEMM runs."""
    a, b = value_of(gemm.a), value_of(gemm.b)
    bias = None if gemm.bias is None else value_of(gemm.bias)
    try:
        return module_text(kernel_spec(target, a, b, bias))
    except KernelError as error:
        return f'"""No module is generated, and the library computes the bands.\n\n{error}\n"""\n'


def rewrite(graph: fx.Graph, chain: Chain, spec: ChainSpec) -> None:
    """Put the op in the collective's place, replay the views on it, and erase the chain."""
    gemm, collective = chain.gemm, chain.collective
    with graph.inserting_before(collective.start):
        last = graph.call_function(
            torch.ops.overlapc.gemm_all_reduce.default,
            (gemm.a, gemm.b, gemm.bias, collective.group, spec.text()),
        )
        copy_facts(gemm.node, last)
        for view, source in zip(chain.views, (gemm.node, *chain.views), strict=False):
            last = graph.node_copy(view, lambda node, s=source, r=last: r if node is s else node)
    collective.wait.replace_all_uses_with(last)
    for node in (collective.wait, collective.start, *reversed(chain.views), gemm.node):
        graph.erase_node(node)


def _shape(gemm: Gemm) -> str:
    rows = str(gemm.m) if gemm.static else f"~{gemm.m}"
    return f"{rows}x{gemm.n}x{gemm.k} {gemm.dtype}"


assert ops  # imported for what it registers
