"""Whether a chain is overlapped: by its plan, and by those at other numbers of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.errors import GroupError, OverlapcError, ProblemError, TargetError
from overlapc.graphs.chains.chain import (
    Chain,
    batches_of_varying_rows,
    blocks_of,
    meta_operands,
    operand_facts,
)
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.sizes import is_static, shape_of
from overlapc.graphs.values import hint_of, tensor_facts
from overlapc.passes.base import Compilation
from overlapc.passes.chain_specs import packed_tile, specification
from overlapc.planning.alike import are_alike, typical
from overlapc.planning.problem import ITEM_BYTES, SENT_BYTES, Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.runtime.plans import plan_call, remember
from overlapc.runtime.ranks.groups import resolve
from overlapc.runtime.signaled.schedule import why_not_signaled
from overlapc.runtime.sizing import problem_of

# Row counts at which a site of symbolic size is tried: if none of them pays, none in between does.
TRIED_ROWS = tuple(2**power for power in reversed(range(18)))

COMMON = "Ranks may compute unlike sizes, and have to decide alike whether to cut."


@dataclass(frozen=True)
class Decision:
    """What becomes of a chain: the plan at its hinted size, and why."""

    decision: str
    plan: Plan
    reason: str
    code: str


def decide(chain: Chain, compilation: Compilation) -> Decision | Refusal:
    """Choose what becomes of a chain: the same on all ranks, whatever each of them computes."""
    schedule, node = compilation.options.overlap, chain.gemms[0].node
    if schedule == "off":
        return Refusal(node, "off", "Option overlap is 'off'.")
    try:
        target = compilation.target_for(chain.gemms[0].device, chain.collective.group)
    except (TargetError, GroupError) as error:
        return no_target(node, error)
    if why := _why_no_dtype(chain):
        return Refusal(node, "dtype", f"{why}: torch runs it as it is.")
    remember(target)
    try:
        problem = _problem(chain, target, compilation)
        plan = plan_call(target.fingerprint, schedule, problem)
    except (ProblemError, GroupError, TargetError) as error:
        return _no_plan(node, error)
    own = Decision("rewritten", plan, plan.reason, plan.code)
    if plan.schedule == "signaled" and (why := _why_not_signaled(chain, plan, target, compilation)):
        reason = f"{plan.reason} The library computes its groups: {why}"
        own = Decision("rewritten", plan, reason, "not_signaled")
    if schedule == "serial":
        # An op would only add what its call costs.
        return replace(own, decision="kept")
    if schedule != "auto":
        return own
    try:
        measured = _measured(chain, problem, target)
        return _for_all_ranks(own, _that_pays(chain, problem, target, measured), target, measured)
    except (ProblemError, TargetError) as error:
        return _no_plan(node, error)


def _for_all_ranks(
    own: Decision, pays: Plan | None, target: Target, measured: Sequence[Problem]
) -> Decision:
    """Decide by ``pays``, which all ranks know, and tell how this rank's own plan fits to it."""
    plan, is_serial = own.plan, own.plan.schedule == "serial"
    if pays is None and is_serial:
        return replace(own, decision="kept")
    if pays is None:
        whole = plan_call(target.fingerprint, "serial", plan.problem)
        sizes = "were measured" if measured else "are usual"
        none = f"It pays at none of the sizes that {sizes} around this collective."
        reason = f"{COMMON} {none} {plan.reason}"
        return Decision("kept", whole, reason, "unusual_sizes")
    if not is_serial:
        return own
    its = pays.problem
    that = f"{its.m}x{its.n}x{its.k} it pays: {pays.reason}"
    if its.m != plan.problem.m:
        return replace(own, reason=f"The rows vary, and at {that}", code="varying_rows")
    return replace(own, reason=f"{plan.reason} {COMMON} At {that}", code="other_sizes")


def _why_no_dtype(chain: Chain) -> str:
    """Which dtype nothing is planned for; empty where there is none."""
    sent = tensor_facts(chain.collective.source)
    if (dtype := chain.gemms[0].dtype) not in ITEM_BYTES:
        return f"GEMMs of {dtype} are not planned, only of {', '.join(ITEM_BYTES)}"
    if sent is not None and sent.dtype not in SENT_BYTES:
        return f"What is sent is {sent.dtype}, and only {', '.join(SENT_BYTES)} are planned"
    return ""


def no_target(node: fx.Node, error: OverlapcError) -> Refusal:
    text = f"There is nothing to plan for: {error.what} Remedy: {error.remedy}."
    return Refusal(node, "no_target", text)


def _no_plan(node: fx.Node, error: OverlapcError) -> Refusal:
    return Refusal(node, "no_plan", f"It cannot be planned: {error.what} Remedy: {error.remedy}.")


def _problem(chain: Chain, target: Target, compilation: Compilation) -> Problem:
    shapes, dtypes = operand_facts(chain)
    spec = specification(chain, target, compilation, "")
    ranks = resolve(chain.collective.group).size()
    receives = [hint_of(size) for size in chain.receives]
    strides = [operand.stride() for operand in meta_operands(chain)]
    return problem_of(spec, shapes, dtypes, ranks, receives, blocks_of(chain), strides)


def _why_not_signaled(chain: Chain, plan: Plan, target: Target, compilation: Compilation) -> str:
    """Why no kernel would compute the chain here; empty where one does."""
    spec = specification(chain, target, compilation, "", packed_tile(plan))
    device = torch.device(chain.gemms[0].device)
    return why_not_signaled(
        spec, target, meta_operands(chain), device, resolve(chain.collective.group)
    )


def _measured(chain: Chain, problem: Problem, target: Target) -> list[Problem]:
    """What was measured of what some rank may have here: every rank knows the same."""
    varies = _varies(chain)
    return [t.problem for t in target.tuned if are_alike(t.problem, problem, rows=varies)]


def _that_pays(
    chain: Chain, problem: Problem, target: Target, measured: Sequence[Problem]
) -> Plan | None:
    """Return a plan that is not serial of what some rank may have here; None where there is none.

    A function of what all ranks have in common: what only some of them rewrite would hang. Sizes of
    the collective that vary, or differ by rank, do not decide either: hints may come from another
    rank's cache. What was measured decides alone, but where rows vary.
    """
    tried: Iterable[Problem] = measured
    if _varies(chain):
        batches = batches_of_varying_rows(chain)
        rows = _tried_batches(problem, batches) if batches else _tried(problem)
        tried = [*measured, *(other for one in rows for other in typical(one))]
    elif not measured:
        tried = typical(problem)
    plans = (plan_call(target.fingerprint, "auto", other) for other in tried)
    return next((plan for plan in plans if plan.schedule != "serial"), None)


def _varies(chain: Chain) -> bool:
    """Whether sizes of what is moved differ by rank, or are no numbers before the collective or
    after it."""
    its = chain.collective
    sizes = *shape_of(its.source), *shape_of(its.wait)
    return bool(chain.sends) or not is_static(sizes)


def _tried(problem: Problem) -> Iterator[Problem]:
    multiple = problem.granule
    for rows in TRIED_ROWS:
        if rows >= multiple:
            yield replace(problem, m=rows // multiple * multiple)


def _tried_batches(problem: Problem, batches: int) -> Iterator[Problem]:
    """So many GEMMs of other rows: groups are made of whole ones."""
    for rows in TRIED_ROWS:
        each = rows * problem.world_size
        yield replace(problem, m=batches * each, row_multiple=each)
