"""Whether a chain is overlapped: by its plan, and by those at other numbers of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.errors import GroupError, OverlapcError, ProblemError, TargetError
from overlapc.graphs.chain import (
    Chain,
    batches_of_varying_rows,
    blocks_of,
    meta_operands,
    operand_facts,
)
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.values import hint_of, tensor_facts
from overlapc.passes.base import Compilation
from overlapc.passes.chain_specs import packed_tile, specification
from overlapc.planning.problem import ITEM_BYTES, SENT_BYTES, Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.runtime.groups import resolve
from overlapc.runtime.plans import plan_call, remember
from overlapc.runtime.signaled import why_not_signaled
from overlapc.runtime.sizing import problem_of

# Row counts at which a site of symbolic size is tried: if none of them pays, none in between does.
TRIED_ROWS = tuple(2**power for power in range(18))


@dataclass(frozen=True)
class Decision:
    """What becomes of a chain: the plan at its hinted size, and why."""

    decision: str
    plan: Plan
    reason: str
    code: str


def decide(chain: Chain, compilation: Compilation) -> Decision | Refusal:
    """Choose what becomes of a chain, from its sizes, the target and the options only."""
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
    if schedule == "serial":
        # An op would only add what its call costs.
        return Decision("kept", plan, plan.reason, plan.code)
    pays = [other for other in tried if other.schedule != "serial"]
    if not pays and schedule == "auto":
        return Decision("kept", plan, plan.reason, plan.code)
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


def _tried_plans(chain: Chain, problem: Problem, target: Target, schedule: str) -> list[Plan]:
    batches = batches_of_varying_rows(chain)
    tried = _tried_batches(problem, batches) if batches else _tried(problem)
    # Of measured plans every rank knows the same, whatever rows it has.
    measured = [tuned.problem for tuned in target.tuned if _differs_in_rows(tuned.problem, problem)]
    return [plan_call(target.fingerprint, schedule, other) for other in (*tried, *measured)]


def _differs_in_rows(one: Problem, other: Problem) -> bool:
    """Whether two problems are equal but for how many rows they have, or not even for that.

    Blocks of rows may be as many as a hint said, and what is computed beside may differ by rank.
    """
    without = [replace(p.common(), m=0, blocks=1) for p in (one, other)]
    return without[0] == without[1]


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
