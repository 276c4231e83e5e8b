"""What compute and link do when, by the cost model: the timelines of `serial` and `chunked`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlapc.planning.cost import Costs, advance
from overlapc.planning.schedule import LOCAL, Event
from overlapc.planning.tiles import Tile


@dataclass(frozen=True)
class Cut:
    """One way to run a problem in groups, and what it is predicted to take."""

    schedule: str
    costs: Costs
    """The costs by which it was predicted; they say what groups are made of."""
    rows: tuple[int, ...]
    """Rows of each group, or its columns or tiles."""
    timeline: tuple[Event, ...]
    tile: Tile | None = None
    """Tile of the generated kernel, where one computes."""

    @property
    def seconds(self) -> float:
        """Until everything is there."""
        return max(event.end for event in self.timeline)


def serial_timeline(costs: Costs) -> tuple[Event, ...]:
    """The whole of one lane, then the whole of the other."""
    p = costs.problem
    first, second = _lanes(costs)
    done = costs.plain(p.m) if p.is_consumer else costs.gemm(p.m)
    return (Event(first, 0, 0.0, done), Event(second, 0, done, costs.serial()))


def chunked_timeline(costs: Costs, rows: Sequence[int]) -> tuple[Event, ...]:
    """Start and end of every group in both lanes, by group; a consumer's local rows first."""
    first, second = _lanes(costs)
    c, d = costs.slowdowns
    ready, end = 0.0, costs.backlog
    passed: list[Event] = []
    pieces: list[Event] = []
    waiting: deque[tuple[int, float]] = deque([(LOCAL, costs.backlog)] if costs.backlog else [])
    for group, count in enumerate(rows):
        start = ready
        work, alone, queued = costs.step(count, is_first=group == 0)
        # Adding nothing gives when the second lane is free of the groups before.
        free = advance(start, end, work, 0.0, 0.0, c, d)[1]
        ready, end = advance(start, end, work, alone, queued, c, d)
        passed.append(Event(first, group, start, ready))
        pieces += _drain(second, waiting, start, ready, d)
        waiting.append((group, end - free))
    pieces += _drain(second, waiting, ready, float("inf"), 1.0)
    return _by_group(passed, _joined(pieces))


def _lanes(costs: Costs) -> tuple[str, str]:
    """The lane that every group passes first, and the one after it."""
    if costs.problem.is_consumer:
        return "communication", "compute"
    return "compute", "communication"


def _drain(
    lane: str, waiting: deque[tuple[int, float]], start: float, until: float, slowdown: float
) -> Iterator[Event]:
    """What the lane does from ``start`` to ``until``; takes the work done off ``waiting``."""
    now = start
    while waiting and now < until:
        group, work = waiting.popleft()
        done = now + work * slowdown
        if done > until:
            waiting.appendleft((group, work - (until - now) / slowdown))
            done = until
        yield Event(lane, group, now, done)
        now = done


def _joined(pieces: Sequence[Event]) -> list[Event]:
    """One event a group: what spans several groups of the first lane comes in pieces."""
    spans: dict[int, Event] = {}
    for piece in pieces:
        start = spans[piece.group].start if piece.group in spans else piece.start
        spans[piece.group] = Event(piece.lane, piece.group, start, piece.end)
    return list(spans.values())


def _by_group(first: Sequence[Event], second: Sequence[Event]) -> tuple[Event, ...]:
    local = tuple(event for event in second if event.group == LOCAL)
    pairs = zip(first, second[len(local) :], strict=True)
    return *local, *(event for pair in pairs for event in pair)
