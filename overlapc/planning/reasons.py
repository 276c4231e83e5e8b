"""Why a plan is what it is: one sentence and a stable code for each case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlapc.planning.cost import Costs
from overlapc.planning.problem import COLUMNS, Problem
from overlapc.planning.schedule import Event, format_seconds
from overlapc.planning.target import Target


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


def measured(seconds: float) -> Reason:
    """The cut won a comparison on this very group."""
    return Reason(
        "measured_best",
        f"Of the best plans that were run on this group this was the fastest, with "
        f"{format_seconds(seconds)}.",
    )


def forced(schedule: str) -> Reason:
    """The schedule was asked for."""
    return Reason("forced", f"The schedule {schedule!r} was asked for.")


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


def no_gain(costs: Costs, timeline: Sequence[Event], margin: float) -> Reason:
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
    groups = 1 + max(event.group for event in timeline)
    change = max(event.end for event in timeline) / serial - 1
    outcome = f"save {-change:.1%}" if change < 0 else f"lose {change:.1%}"
    return Reason(
        "serial_no_gain",
        f"The best cut, {groups} groups, would {outcome} of {format_seconds(serial)}, "
        f"and the margin is {margin:.0%}.",
    )


def overlaps(costs: Costs, timeline: Sequence[Event]) -> Reason:
    """The cut pays."""
    serial, end = costs.serial(), max(event.end for event in timeline)
    computed = sum(event.end - event.start for event in timeline if event.lane == "compute")
    groups = 1 + max(event.group for event in timeline)
    of = " of columns" if costs.by == COLUMNS else ""
    return Reason(
        "chunked_overlaps",
        f"With {groups} groups{of}, {format_seconds(end - computed)} of communication stay visible "
        f"instead of {format_seconds(costs.plain(costs.size))}: "
        f"{serial / end:.2f} times as fast as serial.",
    )
