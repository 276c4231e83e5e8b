"""Why a plan is what it is: one sentence and a stable code for each case."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.planning.cost import Costs
from overlapc.planning.linear.regions import LIBRARY, LinearEntry
from overlapc.planning.problem import COLUMNS, ROWS, Problem
from overlapc.planning.schedule import format_seconds
from overlapc.planning.target import Target
from overlapc.planning.timelines import Cut
from overlapc.planning.tuned import TunedPlan


@dataclass(frozen=True)
class Reason:
    """A code that programs can compare, and a sentence for people."""

    code: str
    text: str


GIVEN = Reason("given", "These groups were given.")
CANDIDATE = Reason("candidate", "It is among the best by prediction, and waits to be measured.")
NOTHING_TO_SIGNAL = Reason(
    "serial_consumer", "The GEMM comes after the collective, so it has nothing to signal."
)
NO_SIGNALS = Reason("serial_no_signals", "A CPU runs no persistent GEMM that could signal.")


def no_kernel(problem: Problem, target: Target) -> Reason:
    """The schedule was asked for, and no generated kernel computes the problem."""
    return Reason(
        "forced",
        f"The schedule 'signaled' was asked for, and {lacking_kernel(problem, target)}: the "
        "library computes the groups.",
    )


def lacking_kernel(problem: Problem, target: Target) -> str:
    """That no kernel is generated for a problem, as a clause that says what stands in the way."""
    if not problem.kernel_sums:
        what = "of what is computed before the collective"
    elif not target.architecture:
        what = f"on {target.name}, whose architecture is not said"
    else:
        what = f"of {problem.dtype} on {target.architecture}"
    return f"no kernel is generated {what}"


def no_multiprocessors(target: Target) -> Reason:
    """The schedule was asked for, and its kernel leaves no multiprocessor to the collective."""
    return Reason(
        "forced",
        f"The schedule 'signaled' was asked for, and {without_multiprocessors(target)}, after "
        "which all is sent: calibrate this group again.",
    )


def without_multiprocessors(target: Target) -> str:
    """That a kernel leaves no multiprocessor to the collective, as a clause."""
    return (
        f"target {target.name} leaves no multiprocessor to the collective (communication_sms), "
        "which waits for the kernel's end"
    )


def measured(seconds: float) -> Reason:
    """The cut won a comparison on this very group."""
    return Reason(
        "measured_best",
        f"Of the best plans that were run on this group this was the fastest, with "
        f"{format_seconds(seconds)}.",
    )


def measured_alike(tuned: TunedPlan) -> Reason:
    """Other work of the same sizes was compared; ranks that compute unlike things decide alike."""
    best = "whole" if len(tuned.rows) == 1 else "cut"
    return Reason(
        "measured_alike",
        f"Other work of these sizes was fastest {best} on this group, with "
        f"{format_seconds(tuned.seconds)}, and ranks that compute unlike things have to decide "
        "alike.",
    )


def forced(schedule: str) -> Reason:
    """The schedule was asked for."""
    return Reason("forced", f"The schedule {schedule!r} was asked for.")


def of_another_size(problem: Problem, target: Target) -> str:
    """One more sentence where times follow from a group of another size; else empty."""
    ranks = problem.world_size
    if ranks == 1 or (measured_with := target.link(problem).world_size) == ranks:
        return ""
    return (
        f" Target {target.name} knows {problem.collective} among {measured_with} ranks, not "
        f"{ranks}, and times are scaled from that curve: torchrun --nproc-per-node={ranks} "
        "--no-python overlapc calibrate measures the right one."
    )


def why_not_cut(problem: Problem) -> Reason | None:
    """Why there is nothing to overlap at all, or None."""
    if problem.world_size == 1:
        return Reason("serial_one_rank", "The group has one member, so nothing is sent.")
    if 0 in (problem.m, problem.n, problem.k):
        return Reason("serial_empty", "A size of the GEMM is zero.")
    return None


def too_small(problem: Problem, unit_rows: int) -> Reason:
    """The rows make one unit, and so do the columns if they may be cut."""
    also = f", and n = {problem.n} one of columns" if COLUMNS in problem.dimensions else ""
    return Reason(
        "serial_too_small",
        f"m = {problem.m} is one unit of {unit_rows} rows{also}, which cannot be cut.",
    )


def contention(target: Target, problem: Problem) -> Reason:
    """Overlap is no faster than taking turns."""
    c, d = target.slowdowns(problem)
    return Reason(
        "serial_contention",
        f"Side by side, compute runs {c:.2f} and the link {d:.2f} times slower, which is no better "
        "than taking turns.",
    )


def no_gain(costs: Costs, cut: Cut, margin: float) -> Reason:
    """The best cut saves less than the margin."""
    size = costs.size
    serial, compute, sent = costs.serial(), costs.gemm(size), costs.plain(size)
    if min(compute, sent) < margin * serial:
        less, seconds = ("communication", sent) if sent < compute else ("compute", compute)
        return Reason(
            "serial_nothing_to_hide",
            f"{less.capitalize()} takes only {format_seconds(seconds)} "
            f"of {format_seconds(serial)}, less than the margin of {margin:.0%}.",
        )
    change = cut.seconds / serial - 1
    outcome = f"save {-change:.1%}" if change < 0 else f"lose {change:.1%}"
    return Reason(
        "serial_no_gain",
        f"The best cut, {len(cut.rows)} {_groups(cut)}, would {outcome} of "
        f"{format_seconds(serial)}, and the margin is {margin:.0%}.",
    )


def overlaps(costs: Costs, cut: Cut) -> Reason:
    """The cut pays."""
    serial, end = costs.serial(), cut.seconds
    computed = sum(event.end - event.start for event in cut.timeline if event.lane == "compute")
    return Reason(
        f"{cut.schedule}_overlaps",
        f"With {len(cut.rows)} {_groups(cut)}, {format_seconds(end - computed)} of communication "
        f"stay visible instead of {format_seconds(costs.plain(costs.size))}: "
        f"{serial / end:.2f} times as fast as serial.",
    )


def no_op_where_rows_vary(entry: LinearEntry) -> Reason | None:
    """Why a graph of any row count is faster on a processor without the op of linear layers, or is
    not known to be slower; None where the op may stand in it.

    The op costs a call where it leaves rows to the library, which a graph of one row count, in
    which it then does not stand, never pays. The most rows that were measured stand for all above,
    which no region reaches and where a call costs as much beside a longer product.
    """
    trials = entry.trials
    left = [t for t in trials[:-1] if entry.regions.implementation(t.rows) == LIBRARY]
    left += trials[-1:]
    found = [(trial.by_op, trial.rows) for trial in left if trial.by_op is not None]
    worst, rows = min(found, key=lambda one: one[0].high, default=(None, 0))
    if worst is not None and worst.high < 1:
        return Reason(
            "op_slower",
            f"Measured here: {entry.regions}; but at {rows} rows the library was surely slower "
            f"where the op calls it, {worst.median:.3f}x [{worst.low:.3f}, {worst.high:.3f}], and "
            "the graph may be called with any row count.",
        )
    if len(found) < len(left):
        return Reason(
            "op_not_measured",
            "The graph may be called with any row count, and what the op costs where the library "
            "computes was not measured, as by an older overlapc: run overlapc calibrate --linear.",
        )
    return None


def _groups(cut: Cut) -> str:
    of = "" if cut.costs.by == ROWS else f" of {cut.costs.by}"
    return f"{'signaled ' if cut.schedule == 'signaled' else ''}groups{of}"
