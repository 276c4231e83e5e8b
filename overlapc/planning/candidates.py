"""The few best plans of a problem by prediction, different enough to be worth measuring."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from overlapc.planning.column_costs import costs_by
from overlapc.planning.cost import Costs, advance
from overlapc.planning.cuts import best_cut, quantum, rows_of
from overlapc.planning.fronts import Front, Label
from overlapc.planning.kernel_costs import kernel_costs
from overlapc.planning.problem import Problem
from overlapc.planning.reasons import CANDIDATE, why_not_cut
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan_rows
from overlapc.planning.signaled import overlapping_cuts, ranked
from overlapc.planning.target import Target

MOST_GROUPS = 8
"""Cuts into more groups are considered only where the best one has them."""

EVEN_GROUPS = (2, 4, 8)
"""Groups of even cuts: enough to show where a prediction is off by more than noise."""


def top_plans(problem: Problem, target: Target, count: int = 3) -> tuple[Plan, ...]:
    """The best plans by prediction, the best first, each with another number of groups or tile.

    ``serial`` is always one of them. A number of groups is what predictions tell apart least well:
    cuts that differ by a few rows only would all be right or wrong together. Each is of rows or of
    columns, whichever is predicted to be faster with so many groups. Fewer than ``count``
    where the problem cannot be cut so often. Beside them stands the best of every tile
    configuration and order of a generated kernel, of which predictions know least: up to four, or
    eight where tiles may be packed. Raises TargetError where the target lacks a rate.
    """
    serial = plan_rows(problem, target, (problem.m,), CANDIDATE) if problem.m else None
    if serial is None or why_not_cut(problem):
        return () if serial is None else (serial,)
    best: dict[int, Plan] = {}
    for by in problem.dimensions:
        for rows in _cuts(costs_by(by, problem, target)):
            plan = plan_rows(problem, target, rows, CANDIDATE, by=by)
            known = best.setdefault(len(rows), plan)
            if plan.predicted_seconds < known.predicted_seconds:
                best[len(rows)] = plan
    ranked = sorted(best.values(), key=lambda plan: (plan.predicted_seconds, len(plan.rows)))
    chosen = [serial, *ranked[: max(0, count - 1)], *_kernels(problem, target)]
    return tuple(sorted(chosen, key=lambda plan: (plan.predicted_seconds, len(plan.rows))))


def plan_in_another_order(plan: Plan, target: Target) -> Plan | None:
    """The plan with the best predicted sweep that it does not have: same groups, same kernel.

    None where every other sweep visits tiles in the same order, and where a library computes.
    Predictions of sweeps only count what moves between memory and L2 cache: a trial has to tell
    which of two is better.
    """
    if not plan.tile:
        return None
    kernel = kernel_costs(plan.by, plan.problem, target, plan.tile)
    height = kernel.highest_in(plan.rows)
    for other in ranked(kernel.swept, plan.rows):
        if other.highest_in(plan.rows) != height:
            tile = other.tiling
            return plan_rows(plan.problem, target, plan.rows, CANDIDATE, by=plan.by, tile=tile)
    return None


def even_plans(problem: Problem, target: Target) -> tuple[Plan, ...]:
    """Cuts into groups of like size, by rows and where possible by columns, whatever is predicted.

    Measured beside `top_plans` they show where predictions are off: the best cuts by prediction
    share what it gets wrong. None where the problem cannot be cut. Raises TargetError where the
    target lacks a rate.
    """
    if not problem.m or why_not_cut(problem):
        return ()
    return tuple(
        plan_rows(problem, target, rows, CANDIDATE, by=by)
        for by in problem.dimensions
        for rows in _even_cuts(costs_by(by, problem, target))
    )


def _even_cuts(costs: Costs) -> Iterator[tuple[int, ...]]:
    unit = quantum(costs)
    units = -(-costs.size // unit)
    for groups in EVEN_GROUPS:
        if groups <= units:
            ends = [min(costs.size, unit * (units * i // groups)) for i in range(groups + 1)]
            yield tuple(end - start for start, end in pairwise(ends))


def _kernels(problem: Problem, target: Target) -> Iterator[Plan]:
    """The best plan of every generated kernel that overlaps."""
    for cut in overlapping_cuts(problem, target):
        yield plan_rows(problem, target, cut.rows, CANDIDATE, by=cut.costs.by, tile=cut.tile)


def _cuts(costs: Costs) -> Iterator[tuple[int, ...]]:
    """The best cut of all, and the best into each small number of groups."""
    unit = quantum(costs)
    if rows := best_cut(costs, unit):
        yield rows
        yield from best_by_groups(costs, unit)


def best_by_groups(
    costs: Costs, unit_rows: int, most: int = MOST_GROUPS
) -> Iterator[tuple[int, ...]]:
    """The best cut into two groups, into three, and so on, of whole units; the last is ragged.

    The same labels as in the search for the best of all, one front for each number of groups.
    """
    m, (c, d) = costs.size, costs.slowdowns
    starts = (*range(0, m, unit_rows), m)
    last = len(starts) - 1
    step = cache(lambda rows, is_first: costs.step(rows, is_first=is_first))
    layer: dict[int, list[Label]] = {0: [(0.0, costs.backlog, 0, 0, None)]}
    for groups in range(1, min(most, last) + 1):
        reached: dict[int, list[Label]] = {}
        for index, labels in layer.items():
            front = Front(labels, c, d)
            for after in range(index + 1, last + 1):
                rows = starts[after] - starts[index]
                work, alone, queued = step(rows, groups == 1)
                for label in front.before(work):
                    times = advance(label[0], label[1], work, alone, queued, c, d)
                    reached.setdefault(after, []).append((*times, groups, starts[after], label))
        layer = reached
        whole = layer.pop(last)
        if groups > 1:
            yield rows_of(min(whole, key=lambda label: (label[1], label[0])))
