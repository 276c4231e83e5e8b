"""The fastest way to cut a `chunked` GEMM into groups: exact, over all compositions.

What is cut is rows or columns, as the costs say; below both are called rows.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf, lcm
from operator import itemgetter

from overlapc.planning.bounds import Bounds
from overlapc.planning.cost import Costs, advance
from overlapc.planning.fronts import Front, Label

MAX_UNITS = 32
"""Units of rows by default: planned in milliseconds, and 64 would gain less than 1 %."""

FEW_UNITS = 8
"""Fewer than that cut too coarsely to keep to whole tiles for."""

COARSE = 4
"""A first search in units so many times larger gives the limit that the fine one prunes with."""

ROUNDING = 1e-9
"""By which a bound may exceed the limit: the cut that set it must survive its own rounding."""


def quantum(costs: Costs, max_units: int = MAX_UNITS) -> int:
    """Rows of a unit: the fewest whole tiles that give at most ``max_units`` units.

    It is a multiple of what groups must be multiples of; where whole tiles are not and would leave
    few units, it gives up the tiles.
    """
    tile, granule = costs.tile, costs.granule
    unit = lcm(tile, granule)
    if unit * FEW_UNITS > costs.size:
        unit = granule * -(-tile // granule)
    return unit * max(1, -(-costs.size // (unit * max_units)))


def best_cut(costs: Costs, unit_rows: int) -> tuple[int, ...]:
    """Rows of the two or more groups that finish first; all but the last are whole units.

    Empty where there is only one unit. Exact for every target whose `Target.overlap_gains`.
    """
    if costs.size <= unit_rows:
        return ()
    return rows_of(_best(costs, unit_rows))


def rows_of(label: Label | None) -> tuple[int, ...]:
    """Rows of the groups that led to a label."""
    done = []
    while label is not None:
        done.append(label[3])
        label = label[4]
    return tuple(right - left for left, right in pairwise(reversed(done)))


def _best(costs: Costs, unit_rows: int) -> Label:
    """The best label that passes all rows; coarser units first give the limit to prune with."""
    coarse = COARSE * unit_rows
    if costs.size <= 2 * coarse:
        return _search(costs, unit_rows, inf)[0]
    known = _best(costs, coarse)
    # Without `Target.overlap_gains` dropping labels may lose the known cut, and find no other.
    return next(iter(_search(costs, unit_rows, known[1])), known)


def _search(costs: Costs, unit_rows: int, limit: float) -> list[Label]:
    """The best label that passes all rows, given that some cut ends by ``limit``.

    A label stands at (ready, end). `advance` never falls with either, as long as 1/c + 1/d >= 1 and
    ``queued`` <= ``alone``, so a label that another one beats in both can be dropped. One best
    label is not enough: the cut with the later ``end`` may be ``ready`` earlier, and win.
    """
    m, (c, d) = costs.size, costs.slowdowns
    starts = (*range(0, m, unit_rows), m)
    last = len(starts) - 1
    sizes = {right - left for i, left in enumerate(starts) if left for right in starts[i + 1 :]}
    first = {rows: costs.step(rows, is_first=True) for rows in starts[1:last]}
    later = {rows: costs.step(rows, is_first=False) for rows in sizes}
    bounds = Bounds(starts, later, c, d)
    share, by_ready, by_end = bounds.share, bounds.by_ready, bounds.by_end
    limit *= 1 + ROUNDING
    reached: list[list[Label]] = [[] for _ in starts]
    reached[0].append((0.0, costs.backlog, 0, 0, None))
    for index, start in enumerate(starts[:-1]):
        front = Front(reached[index], c, d)
        # First all that is left as one group: it may lower the limit.
        for after in (last, *range(index + 1, last)) if start else range(1, last):
            rows = starts[after] - start
            work, alone, queued = (later if start else first)[rows]
            ready_by, end_by = limit - by_ready[after], limit - by_end[after]
            for label in front.before(work):
                ready, end = advance(label[0], label[1], work, alone, queued, c, d)
                if end <= end_by and ready + share * (end - ready) <= ready_by:
                    reached[after].append((ready, end, label[2] + 1, starts[after], label))
        if reached[last]:
            limit = min(limit, (1 + ROUNDING) * min(label[1] for label in reached[last]))
    return sorted(reached[last], key=itemgetter(1, 2, 0))[:1]
