"""From a problem and a target to the plan that is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from overlapc.errors import OptionError, PlanError
from overlapc.planning import reasons
from overlapc.planning.cost import Costs
from overlapc.planning.cuts import MAX_UNITS, best_cut, quantum
from overlapc.planning.problem import Problem
from overlapc.planning.reasons import Reason
from overlapc.planning.schedule import SCHEDULES, Event, Plan
from overlapc.planning.signaled import best_groups, boundaries, signaled_timeline
from overlapc.planning.target import Target
from overlapc.planning.timelines import chunked_timeline, serial_timeline

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
    dtype: Any,
    target: str | Path | Target,
    schedule: str = "auto",
    order: str = "",
) -> Plan:
    """Plan ``A[m, k] @ B[k, n]`` on every rank and a collective over the result, or over A.

    Sizes are those of one rank; ``dtype`` is a dtype of torch or its name; ``target`` is a name, a
    file or a record; ``order`` as `Problem` has it. Needs no device and no process group. Raises
    ProblemError, TargetError, OptionError.
    """
    if not isinstance(target, Target):
        target = Target.load(target)
    name = str(dtype).removeprefix("torch.")
    return plan(Problem(m, n, k, name, collective, world_size, order=order), target, schedule)


def plan(
    problem: Problem, target: Target, schedule: str = "auto", *, max_units: int = MAX_UNITS
) -> Plan:
    """The fastest plan, or the fastest of a schedule that is asked for.

    "auto" takes what was measured for this very problem, where the target has it. Else it weighs
    ``serial`` and ``chunked``; ``serial`` wins unless the other saves a margin.
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
    if schedule == "auto" and (tuned := target.tuned_for(problem)):
        return _cut(costs, tuned.rows, reasons.measured(tuned.seconds))
    if schedule == "auto" and not target.overlap_gains(problem):
        return _serial(costs, reasons.contention(target, problem))
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


def plan_rows(
    problem: Problem, target: Target, rows: Sequence[int], reason: Reason = reasons.GIVEN
) -> Plan:
    """The plan that cuts the problem into these groups of rows; one group is ``serial``.

    Raises PlanError where ``rows`` are not positive or do not add up to m.
    """
    granule = problem.granule
    if sum(rows) != problem.m or any(count < 1 or count % granule for count in rows):
        raise PlanError(
            f"Groups of {list(rows)} rows do not cut {problem.m} rows.",
            where="plan_rows",
            remedy=f"give positive multiples of {granule} that add up to m",
        )
    return _cut(Costs(problem, target), tuple(rows), reason)


def _cut(costs: Costs, rows: tuple[int, ...], reason: Reason) -> Plan:
    if len(rows) == 1:
        return _serial(costs, reason)
    return _plan(costs, "chunked", rows, chunked_timeline(costs, rows), reason)


def _signaled(costs: Costs) -> Plan:
    if costs.problem.is_consumer:
        return _serial(costs, reasons.NOTHING_TO_SIGNAL)
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
