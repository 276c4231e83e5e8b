"""The fastest way to cut a `chunked` GEMM into groups of rows: exact, over all compositions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import itemgetter

from overlapc.planning.cost import Costs, advance
from overlapc.planning.problem import Problem
from overlapc.planning.target import Target

MAX_UNITS = 32
"""Units of rows by default: planned in milliseconds, and 64 would gain less than 1 %."""

ROW_GRANULARITY = 16
"""Rows of the smallest unit where the target's tile is smaller still: the register blocks of CPU
libraries are up to 16 rows high, and the rate falls below that."""

COARSE = 4
"""A first search in units so many times larger gives the limit that the fine one prunes with."""


@dataclass(frozen=True, slots=True)
class _Label:
    """One way to compute the first so many units, and when that leaves compute and link."""

    ready: float
    end: float
    groups: int
    rows: int
    before: _Label | None


def quantum(problem: Problem, target: Target, max_units: int = MAX_UNITS) -> int:
    """Rows of a unit: the fewest whole tiles that give at most ``max_units`` units."""
    tile = max(target.rates(problem).tile_rows, ROW_GRANULARITY)
    return tile * max(1, -(-problem.m // (tile * max_units)))


def best_cut(costs: Costs, unit_rows: int) -> tuple[int, ...]:
    """Rows of the two or more groups that finish first; all but the last are whole units.

    Empty where there is only one unit. Exact for every target whose `Target.overlap_gains`.
    """
    units = -(-costs.problem.m // unit_rows)
    if units < 2:
        return ()
    coarse = COARSE * unit_rows
    limit = _search(costs, coarse, inf).end if units > 2 * COARSE else inf
    label: _Label | None = _search(costs, unit_rows, limit)
    rows = []
    while label is not None and label.before is not None:
        rows.append(label.rows)
        label = label.before
    return tuple(reversed(rows))


def _search(costs: Costs, unit_rows: int, limit: float) -> _Label:
    """The best label that computes all rows, given that some cut ends by ``limit``.

    A label stands at (ready, end). `advance` never falls with either, as long as 1/c + 1/d >= 1 and
    ``queued`` <= ``alone``, so a label that another one beats in both can be dropped. One best
    label is not enough: the cut with the later ``end`` may be ``ready`` earlier, and win.
    """
    m, c, d = costs.problem.m, costs.target.compute_slowdown, costs.target.link_slowdown
    starts = [*range(0, m, unit_rows), m]
    sizes = {right - left for i, left in enumerate(starts) for right in starts[i + 1 :]} - {m}
    work = {rows: costs.gemm(rows) + costs.issue() for rows in sizes}
    first, later = (
        {rows: costs.sent(rows, is_first=is_first) for rows in sizes} for is_first in (True, False)
    )
    least_work = _least(starts, work)
    least_sent = _least(starts, {rows: min(first[rows] + later[rows]) for rows in sizes})
    limit *= 1 + 1e-9  # The coarse cut itself must survive its own rounding.
    labels = [[_Label(0.0, 0.0, 0, 0, None)]]
    for index, done in enumerate(starts[1:], 1):
        ready_by, end_by = limit - least_work[index], limit - least_sent[index]
        reached = []
        for start, here in zip(starts, labels, strict=False):
            rows = done - start
            if rows == m:
                continue
            times = work[rows], *(later if start else first)[rows], c, d
            for label in here:
                ready, end = advance(label.ready, label.end, *times)
                if ready <= ready_by and end <= end_by:
                    reached.append((ready, end, label.groups + 1, rows, label))
        labels.append(_undominated(reached))
    return labels[-1][-1]


def _undominated(reached: list[tuple[float, float, int, int, _Label]]) -> list[_Label]:
    """The labels that no other equals or beats in both; fewer groups win a tie."""
    kept: list[_Label] = []
    earliest = inf
    for ready, end, groups, rows, before in sorted(reached, key=itemgetter(0, 1, 2)):
        if end < earliest:
            kept.append(_Label(ready, end, groups, rows, before))
            earliest = end
    return kept


def _least(starts: Sequence[int], seconds: Mapping[int, float]) -> list[float]:
    """From each start, the least sum of ``seconds`` over any cut of the rows that remain."""
    least = [0.0] * len(starts)
    for index in reversed(range(len(starts) - 1)):
        least[index] = min(
            seconds[right - starts[index]] + rest
            for right, rest in zip(starts[index + 1 :], least[index + 1 :], strict=True)
            if right - starts[index] in seconds
        )
    return least
