"""From a problem and a target to the plan that is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from overlapc.errors import OptionError, PlanError
from overlapc.planning import reasons
from overlapc.planning.column_costs import costs_by
from overlapc.planning.cost import Costs
from overlapc.planning.cuts import MAX_UNITS, best_cut, quantum
from overlapc.planning.problem import COLUMNS, ROWS, Problem
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

TIE = 1e-6
"""Share of its time by which a cut of columns must be faster than one of rows: rounding is less."""


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
    file or a record; ``order`` as `Problem` has it. The columns of a result may be cut, as nothing
    stands between the two. Needs no device and no process group. Raises ProblemError, TargetError,
    OptionError.
    """
    if not isinstance(target, Target):
        target = Target.load(target)
    name = str(dtype).removeprefix("torch.")
    problem = Problem(m, n, k, name, collective, world_size, order=order, cuts_columns=True)
    return plan(replace(problem, cuts_columns=not problem.is_consumer), target, schedule)


def plan(
    problem: Problem, target: Target, schedule: str = "auto", *, max_units: int = MAX_UNITS
) -> Plan:
    """The fastest plan, or the fastest of a schedule that is asked for.

    "auto" takes what was measured for this very problem, where the target has it. Else it weighs
    ``serial`` and ``chunked``, by rows and where the problem allows it by columns; ``serial`` wins
    unless the other saves a margin, and rows win ties.
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
        return _cut(
            costs_by(tuned.by, problem, target), tuned.rows, reasons.measured(tuned.seconds)
        )
    if schedule == "auto" and not target.overlap_gains(problem):
        return _serial(costs, reasons.contention(target, problem))
    best = _best_cut(problem, target, max_units)
    if best is None:
        return _serial(costs, reasons.too_small(problem, quantum(costs, max_units)))
    cut, rows, timeline = best
    if schedule == "chunked":
        return _plan(cut, "chunked", rows, timeline, reasons.forced("chunked"))
    margin = MEASURED_MARGIN if target.knows(problem) else UNMEASURED_MARGIN
    if _seconds(timeline) > (1 - margin) * costs.serial():
        return _serial(costs, reasons.no_gain(cut, timeline, margin))
    return _plan(cut, "chunked", rows, timeline, reasons.overlaps(cut, timeline))


Cut = tuple[Costs, tuple[int, ...], tuple[Event, ...]]
"""The costs that say what is cut, the groups, and when they pass."""


def _best_cut(problem: Problem, target: Target, max_units: int) -> Cut | None:
    """The fastest cut of rows or columns; None where each is one unit."""
    best = None
    for costs in (costs_by(by, problem, target) for by in problem.dimensions):
        if rows := best_cut(costs, quantum(costs, max_units)):
            timeline = chunked_timeline(costs, rows)
            if best is None or _seconds(timeline) < (1 - TIE) * _seconds(best[2]):
                best = costs, rows, timeline
    return best


def plan_rows(
    problem: Problem,
    target: Target,
    rows: Sequence[int],
    reason: Reason = reasons.GIVEN,
    *,
    by: str = ROWS,
) -> Plan:
    """The plan that cuts the problem into these groups of rows, or of columns by choice.

    One group is ``serial``. Raises PlanError where counts are not positive or do not add up, or
    where columns may not be cut.
    """
    if not problem.is_cut_by(rows, by):
        size, granule = (problem.n, 1) if by == COLUMNS else (problem.m, problem.granule)
        raise PlanError(
            f"Groups of {list(rows)} {by} do not cut {size} {by}.",
            where="plan_rows",
            remedy=f"give positive multiples of {granule} that add up, of "
            f"{' or '.join(problem.dimensions)}",
        )
    return _cut(costs_by(by, problem, target), tuple(rows), reason)


def _cut(costs: Costs, rows: tuple[int, ...], reason: Reason) -> Plan:
    if len(rows) == 1:
        return _serial(Costs(costs.problem, costs.target), reason)
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
        by=costs.by,
    )
