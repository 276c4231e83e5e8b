"""From a problem and a target to the plan that is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from overlapc.errors import OptionError, PlanError
from overlapc.planning import reasons
from overlapc.planning.column_costs import costs_by
from overlapc.planning.cost import Costs
from overlapc.planning.cuts import MAX_UNITS, best_cut, quantum
from overlapc.planning.kernel_costs import kernel_costs
from overlapc.planning.problem import COLUMNS, ROWS, TILES, Problem
from overlapc.planning.reasons import Reason
from overlapc.planning.schedule import SCHEDULES, Plan
from overlapc.planning.signaled import configurations, overlapping_cuts, signaled_cut, signaled_cuts
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, Tile
from overlapc.planning.timelines import Cut, chunked_timeline, serial_timeline
from overlapc.planning.tuned import TunedPlan

MEASURED_MARGIN = 0.05
"""Share of the serial time that a cut must be predicted to save, on a target measured here: what
predictions miss by when they miss (their median error was 2 to 4 % on rate-limited links)."""

UNMEASURED_MARGIN = 0.08
"""As ``MEASURED_MARGIN``, where rates or the curve are another machine's or another group size's,
or a generated kernel's rate is assumed: chosen."""

TIE = 1e-6
"""Share of its time by which a cut of columns must be faster than one of rows, and a kernel than
the library: rounding is less."""


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
    file or a record; ``order`` as `Problem` has it. Nothing stands between the two, so that the
    columns of a result may be cut and a kernel may be generated. Needs no device and no process
    group. Raises ProblemError, TargetError, OptionError.
    """
    if not isinstance(target, Target):
        target = Target.load(target)
    name = str(dtype).removeprefix("torch.")
    problem = Problem(m, n, k, name, collective, world_size, order=order)
    if not problem.is_consumer:
        problem = replace(problem, cuts_columns=True, kernel_sums=MOST_SUMS)
    return plan(problem, target, schedule)


def plan(
    problem: Problem,
    target: Target,
    schedule: str = "auto",
    *,
    max_units: int = MAX_UNITS,
    untried_kernels: bool = True,
) -> Plan:
    """The fastest plan, or the fastest of a schedule that is asked for.

    "auto" takes what was measured for this very problem, or for other work of the same sizes, where
    the target has it. Else it weighs
    ``serial``, ``chunked``, by rows and where the problem allows it by columns, and ``signaled``,
    with each tile configuration and order of tiles; without ``untried_kernels`` a generated kernel
    is chosen only where it was measured. ``serial`` wins unless another saves its margin; rows win
    ties, and so does the library's GEMM.
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
        return _as_measured(problem, target, tuned, max_units)
    if schedule == "auto" and not target.overlap_gains(problem):
        return _serial(costs, reasons.contention(target, problem))
    chunked = _best_chunked(problem, target, max_units)
    if schedule == "chunked":
        if chunked is None:
            return _serial(costs, reasons.too_small(problem, quantum(costs, max_units)))
        return _plan(chunked, reasons.forced("chunked"))
    cuts = overlapping_cuts(problem, target) if untried_kernels else []
    cuts = [chunked, *cuts] if chunked else cuts
    if not cuts:
        return _serial(costs, reasons.too_small(problem, quantum(costs, max_units)))
    paying = [cut for cut in cuts if cut.seconds <= (1 - margin_of(cut)) * costs.serial()]
    if not paying:
        best = min(cuts, key=lambda cut: cut.seconds / (1 - margin_of(cut)))
        return _serial(costs, reasons.no_gain(costs, best, margin_of(best)))
    best = min(paying, key=lambda cut: cut.seconds * (1 - TIE * (cut is chunked)))
    return _plan(best, reasons.overlaps(costs, best))


def _as_measured(problem: Problem, target: Target, tuned: TunedPlan, max_units: int) -> Plan:
    """The plan that was measured, or where this rank cannot have those groups another cut."""
    exact = problem.resolved()
    is_own = tuned.problem in (exact, replace(exact, takes_map=False))
    reason = reasons.measured(tuned.seconds) if is_own else reasons.measured_alike(tuned)
    if problem.is_cut_by(tuned.rows, tuned.by, tuned.tile):
        return plan_rows(problem, target, tuned.rows, reason, by=tuned.by, tile=tuned.tile)
    if chunked := _best_chunked(problem, target, max_units):
        return _plan(chunked, reason)
    costs = Costs(problem, target)
    return _serial(costs, reasons.too_small(problem, quantum(costs, max_units)))


def margin_of(cut: Cut) -> float:
    """Share of the serial time that this cut must be predicted to save."""
    target, problem = cut.costs.target, cut.costs.problem
    is_known = target.knows(problem)
    if cut.schedule == "signaled":
        is_known &= cut.costs.rates.generated_share is not None
    return MEASURED_MARGIN if is_known else UNMEASURED_MARGIN


def _best_chunked(problem: Problem, target: Target, max_units: int) -> Cut | None:
    """The fastest cut of rows or columns; None where each is one unit."""
    best = None
    for costs in (costs_by(by, problem, target) for by in problem.dimensions):
        if rows := best_cut(costs, quantum(costs, max_units)):
            cut = Cut("chunked", costs, rows, chunked_timeline(costs, rows))
            if best is None or cut.seconds < (1 - TIE) * best.seconds:
                best = cut
    return best


def plan_rows(
    problem: Problem,
    target: Target,
    rows: Sequence[int],
    reason: Reason = reasons.GIVEN,
    *,
    by: str = ROWS,
    tile: Tile | None = None,
) -> Plan:
    """The plan that cuts the problem into these groups of rows, or of columns by choice.

    With a ``tile`` it is ``signaled``, and groups may be of tiles; else one group is ``serial``.
    Raises PlanError where counts are not positive or do not add up, where columns or tiles may not
    be cut, or a band ends inside a tile.
    """
    if not problem.is_cut_by(rows, by, tile):
        raise _misfit(problem, rows, by, tile)
    if tile:
        return _plan(signaled_cut(kernel_costs(by, problem, target, tile), rows), reason)
    if len(rows) == 1:
        return _serial(Costs(problem, target), reason)
    costs = costs_by(by, problem, target)
    return _plan(Cut("chunked", costs, tuple(rows), chunked_timeline(costs, rows)), reason)


def _misfit(problem: Problem, rows: Sequence[int], by: str, tile: Tile | None) -> PlanError:
    size, granule = (problem.n, 1) if by == COLUMNS else (problem.m, problem.granule)
    dimensions = problem.dimensions
    if tile:
        size = tile.count(problem.m, problem.n) if by == TILES else size
        granule = problem.band_rows(tile) if by == ROWS else 1
        dimensions = problem.kernel_dimensions
    return PlanError(
        f"Groups of {list(rows)} {by} do not cut {size} {by}.",
        where="plan_rows",
        remedy=f"give positive multiples of {granule} that add up, of {' or '.join(dimensions)}",
    )


def bound(problem: Problem, target: Target) -> float:
    """Seconds that no plan of the problem is predicted to beat, whatever its schedule and groups.

    A kernel may lose less beside a collective than the library's GEMM does.
    """
    kernels = (
        kernel_costs(by, problem, target, tile)
        for tile in configurations(problem, target)
        for by in problem.kernel_dimensions
    )
    return min(costs.bound() for costs in (Costs(problem, target), *kernels))


def _signaled(costs: Costs) -> Plan:
    """The best signaled plan there is, in one group if need be."""
    problem, target = costs.problem, costs.target
    if problem.is_consumer:
        return _serial(costs, reasons.NOTHING_TO_SIGNAL)
    if target.device == "cpu":
        return _serial(costs, reasons.NO_SIGNALS)
    best = min(signaled_cuts(problem, target), key=lambda cut: cut.seconds, default=None)
    if best is not None and not target.communication_sms:
        return _plan(best, reasons.no_multiprocessors(target))
    if best is not None:
        return _plan(best, reasons.forced("signaled"))
    # Without a kernel the library computes the groups, which are sent all the same.
    unit = quantum(costs)
    if rows := best_cut(costs, unit):
        cut = Cut("signaled", costs, rows, chunked_timeline(costs, rows))
        return _plan(cut, reasons.no_kernel(problem, target))
    return _serial(costs, reasons.too_small(problem, unit))


def _serial(costs: Costs, reason: Reason) -> Plan:
    return _plan(Cut("serial", costs, (costs.problem.m,), serial_timeline(costs)), reason)


def _plan(cut: Cut, reason: Reason) -> Plan:
    problem, target = cut.costs.problem, cut.costs.target
    whole = Costs(problem, target)
    return Plan(
        problem=problem,
        target=target.name,
        fingerprint=target.fingerprint,
        schedule=cut.schedule,
        rows=cut.rows,
        predicted_seconds=cut.seconds,
        serial_seconds=whole.serial(),
        bound_seconds=min(cut.costs.bound(), bound(problem, target)),
        code=reason.code,
        reason=reason.text + reasons.of_another_size(problem, target),
        timeline=cut.timeline,
        by=cut.costs.by,
        tile=cut.tile,
    )
