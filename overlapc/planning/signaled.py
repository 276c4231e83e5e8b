"""The `signaled` schedule: one persistent GEMM that releases runs of waves to the link. Exact."""

from __future__ import annotations

from dataclasses import dataclass, replace

from overlapc.planning.cost import Costs, advance
from overlapc.planning.schedule import Event

MAX_BOUNDARIES = 256
"""Places where a group may end; with more waves than that, evenly spaced ones are kept."""


@dataclass(frozen=True)
class Boundary:
    """A moment of the GEMM at which a prefix of whole tile rows is complete."""

    ready: float
    """Seconds from the start."""
    rows: int
    """Rows complete, from the top."""


def boundaries(costs: Costs) -> tuple[Boundary, ...]:
    """Where groups may end: after each wave that completes at least one more row of tiles.

    The GEMM runs on the multiprocessors that the collective does not use, so at one speed however
    it is cut. Row order: a wave fills whole rows of tiles before it starts the next one.
    """
    p, rates = costs.problem, costs.rates
    resident = max(1, rates.resident - costs.target.communication_sms)
    share = resident / rates.resident
    slowed = replace(rates, resident=resident, flops_per_second=rates.flops_per_second * share)
    waves = -(-slowed.tiles(p.m, p.n) // resident)
    busy = slowed.seconds(p.m, p.n, p.k, p.item_bytes, p.epilogue_bytes) - slowed.launch_seconds
    tiles_per_row = -(-p.n // slowed.tile_columns)
    found: list[Boundary] = []
    for wave in range(1, waves + 1):
        rows = (
            min(p.m, wave * resident // tiles_per_row * slowed.tile_rows) // p.granule * p.granule
        )
        if rows > (found[-1].rows if found else 0):
            found.append(Boundary(slowed.launch_seconds + busy * wave / waves, rows))
    step = -(-len(found) // MAX_BOUNDARIES)
    return tuple(reversed(found[::-1][::step]))


def best_groups(costs: Costs, ends: tuple[Boundary, ...]) -> tuple[Boundary, ...]:
    """The boundaries that end the groups of the fastest cut.

    ``end`` never falls as the one before rises, so one best label a boundary is enough:
    O(boundaries squared).
    """
    rows_at = [0, *(boundary.rows for boundary in ends)]
    later = _Later(costs)
    best, groups, chosen = [0.0], [0], [-1]
    for index, boundary in enumerate(ends, 1):
        start, rows = boundary.ready + costs.target.signal_seconds, boundary.rows
        least, fewest, found = start + costs.sent(rows, is_first=True)[0], 1, 0
        for before in range(index - 1, 0, -1):
            alone, queued = later[rows - rows_at[before]]
            # `advance` between lanes that do not slow each other, written out for speed: a later
            # transfer is never quicker for finding the link idle.
            rested, end = start + alone, best[before] + queued
            if end < rested:
                end = rested
            if end < least or (end == least and groups[before] < fewest - 1):
                least, fewest, found = end, groups[before] + 1, before
            elif rested > least and later.rises:
                break
        best.append(least)
        groups.append(fewest)
        chosen.append(found)
    cut, index = [], len(ends)
    while index > 0:
        cut.append(ends[index - 1])
        index = chosen[index]
    return tuple(reversed(cut))


class _Later(dict[int, tuple[float, float]]):
    """Seconds of a transfer that is not the first, on an idle and on a busy link, by its rows."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        link = costs.link
        self.rises = link is None or (link.issue is None and link.alone.rises and link.queued.rises)
        """Whether more rows never take less time."""

    def __missing__(self, rows: int) -> tuple[float, float]:
        self[rows] = self._costs.sent(rows, is_first=False)
        return self[rows]


def _sent(costs: Costs, boundary: Boundary, end: float, start_row: int) -> float:
    """When the link is done, at ``end`` with the rows above ``start_row``, with the next group."""
    rows, start = boundary.rows - start_row, boundary.ready + costs.target.signal_seconds
    return advance(start, end, 0.0, *costs.sent(rows, is_first=start_row == 0), 1.0, 1.0)[1]


def signaled_timeline(costs: Costs, groups: tuple[Boundary, ...]) -> tuple[Event, ...]:
    """Start and end of every group's waves and collective, by group."""
    events: list[Event] = []
    computed = end = 0.0
    rows = 0
    for group, boundary in enumerate(groups):
        events.append(Event("compute", group, computed, boundary.ready))
        start = max(end, boundary.ready + costs.target.signal_seconds)
        end = _sent(costs, boundary, end, rows)
        events.append(Event("communication", group, start, end))
        computed, rows = boundary.ready, boundary.rows
    return tuple(events)
