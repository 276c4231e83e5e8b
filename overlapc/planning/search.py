"""From a problem and a target to the plan that is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from overlapc.errors import OptionError, PlanError
from overlapc.planning import reasons
from overlapc.planning.cost import Costs, chunked_timeline, serial_timeline
from overlapc.planning.cuts import MAX_UNITS, best_cut, quantum
from overlapc.planning.problem import Problem
from overlapc.planning.reasons import Reason
from overlapc.planning.schedule import SCHEDULES, Event, Plan
from overlapc.planning.signaled import best_groups, boundaries, signaled_timeline
from overlapc.planning.target import Target

MEASURED_MARGIN = 0.05
"""Share of the serial time that a cut must be predicted to save, on a target measured here: what
predictions miss by when they miss (their median error was 2 to 4 % on rate-limited links)."""

UNMEASURED_MARGIN = 0.08
"""The same where rates or the curve are another machine's or another group size's: chosen."""


def plan_gemm(
    *,
    m: int,
    n: int,
    k: int,
    collective: str = "all_reduce",
    world_size: int,
    dtype: str,
    target: str | Path | Target,
    schedule: str = "auto",
) -> Plan:
    """Plan ``A[m, k] @ B[k, n]`` on every rank and a collective over the result.

    Sizes are those of one rank; ``dtype`` is named as in torch; ``target`` is a name, a file or a
    record. Needs no device and no process group. Raises ProblemError, TargetError, OptionError.
    """
    if not isinstance(target, Target):
        target = Target.load(target)
    return plan(Problem(m, n, k, str(dtype), collective, world_size), target, schedule)


def plan(
    problem: Problem, target: Target, schedule: str = "auto", *, max_units: int = MAX_UNITS
) -> Plan:
    """The fastest plan, or the fastest of a schedule that is asked for.

    "auto" weighs ``serial`` and ``chunked``; ``serial`` wins unless the other saves a margin.
    Where a schedule that is asked for cannot cut the problem, the plan is serial and says so.
    A function of its arguments only. Raises TargetError where the target lacks a rate.
    """
    if schedule not in ("auto", *SCHEDULES):
        raise OptionError(
            f"There is no schedule {schedule!r}.",
            where="planning",
            remedy=f"choose auto, {', '.join(SCHEDULES)}",
        )
    costs = Costs(problem, target)
    if trivial := reasons.why_not_cut(problem):
        return _serial(costs, trivial)
    if schedule == "serial":
        return _serial(costs, reasons.forced("serial"))
    if schedule == "signaled":
        return _signaled(costs)
    if schedule == "auto" and not target.overlap_gains:
        return _serial(costs, reasons.contention(target))
    unit = quantum(problem, target, max_units)
    rows = best_cut(costs, unit)
    if not rows:
        return _serial(costs, reasons.too_small(problem, unit))
    timeline = chunked_timeline(costs, rows)
    if schedule == "chunked":
        return _plan(costs, "chunked", rows, timeline, reasons.forced("chunked"))
    margin = MEASURED_MARGIN if target.knows(problem) else UNMEASURED_MARGIN
    if _seconds(timeline) > (1 - margin) * costs.serial():
        return _serial(costs, reasons.no_gain(costs, timeline, margin))
    return _plan(costs, "chunked", rows, timeline, reasons.overlaps(costs, timeline))


def plan_rows(problem: Problem, target: Target, rows: Sequence[int]) -> Plan:
    """The plan that cuts the problem into these groups of rows; one group is ``serial``.

    Raises PlanError where ``rows`` are not positive or do not add up to m.
    """
    if sum(rows) != problem.m or min(rows, default=0) < 1:
        raise PlanError(
            f"Groups of {list(rows)} rows do not cut {problem.m} rows.",
            where="plan_rows",
            remedy="give positive counts that add up to m",
        )
    costs = Costs(problem, target)
    if len(rows) == 1:
        return _serial(costs, reasons.GIVEN)
    timeline = chunked_timeline(costs, rows)
    return _plan(costs, "chunked", tuple(rows), timeline, reasons.GIVEN)


def _signaled(costs: Costs) -> Plan:
    if costs.target.device == "cpu":
        return _serial(costs, reasons.NO_SIGNALS)
    groups = best_groups(costs, boundaries(costs))
    ends = [0, *(group.rows for group in groups)]
    rows = tuple(right - left for left, right in pairwise(ends))
    timeline = signaled_timeline(costs, groups)
    return _plan(costs, "signaled", rows, timeline, reasons.forced("signaled"))


def _serial(costs: Costs, reason: Reason) -> Plan:
    return _plan(costs, "serial", (costs.problem.m,), serial_timeline(costs), reason)


def _seconds(timeline: Sequence[Event]) -> float:
    return max(event.end for event in timeline)


def _plan(
    costs: Costs, schedule: str, rows: tuple[int, ...], timeline: tuple[Event, ...], reason: Reason
) -> Plan:
    return Plan(
        problem=costs.problem,
        target=costs.target.name,
        fingerprint=costs.target.fingerprint,
        schedule=schedule,
        rows=rows,
        predicted_seconds=_seconds(timeline),
        serial_seconds=costs.serial(),
        bound_seconds=costs.bound(),
        code=reason.code,
        reason=reason.text,
        timeline=timeline,
    )
