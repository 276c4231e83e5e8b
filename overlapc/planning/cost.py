"""Seconds of a problem on a target, however it is cut. `formulas` states the same in symbols."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from overlapc.planning.problem import Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.schedule import Event
from overlapc.planning.target import Target


@dataclass(frozen=True)
class Costs:
    """The times of one problem on one target. Raises TargetError where the target lacks a rate."""

    problem: Problem
    target: Target

    @cached_property
    def rates(self) -> GemmRates:
        """GEMM rates for the problem's dtype."""
        return self.target.rates(self.problem)

    @cached_property
    def link(self) -> Link | None:
        """The link among the ranks; None for a group of one."""
        return self.target.link(self.problem) if self.problem.world_size > 1 else None

    def gemm(self, rows: int) -> float:
        """Seconds of a library GEMM on ``rows`` rows, with nothing in flight."""
        p = self.problem
        extra = p.epilogue_bytes * rows // p.m if p.m else 0
        return self.rates.seconds(rows, p.n, p.k, p.item_bytes, extra)

    def issue(self) -> float:
        """Seconds of compute that a group costs beside its GEMM."""
        return self.link.issue_seconds if self.link else 0.0

    def alone(self, rows: int) -> float:
        """Seconds of a collective over ``rows`` rows on an idle link."""
        return self._link_seconds(rows, is_queued=False)

    def queued(self, rows: int) -> float:
        """Seconds that ``rows`` rows add to a train of collectives."""
        return self._link_seconds(rows, is_queued=True)

    def sent(self, rows: int, *, is_first: bool) -> tuple[float, float]:
        """Seconds of a group's collective on an idle and on a busy link: ``alone``, ``queued``.

        The first group finds the link rested: a bucket that has filled up can make it quicker than
        those that follow. A later one is never quicker for finding the link idle.
        """
        alone, queued = self.alone(rows), self.queued(rows)
        return (alone if is_first else max(alone, queued)), queued

    def _link_seconds(self, rows: int, *, is_queued: bool) -> float:
        if self.link is None:
            return 0.0
        curve = self.link.queued if is_queued else self.link.alone
        return self.link.scaled(curve, self.problem.output_bytes(rows), self.problem.world_size)

    def serial(self) -> float:
        """Seconds of the whole GEMM, then the whole collective."""
        return self.gemm(self.problem.m) + self.alone(self.problem.m)

    def bound(self) -> float:
        """Seconds of both when neither waits for the other, under the target's contention."""
        c, d = self.target.compute_slowdown, self.target.link_slowdown
        sent, computed = self.alone(self.problem.m), self.gemm(self.problem.m)
        return max(advance(0.0, sent, computed, 0.0, 0.0, c, d))


def advance(
    ready: float, end: float, work: float, alone: float, queued: float, c: float, d: float
) -> tuple[float, float]:
    """Compute one more group, then send it. Returns the new ``(ready, end)``.

    ``ready`` is when the groups so far are computed, ``end`` when the link would be done with them
    if nothing more were computed. Until the link has caught up, compute runs at ``1 / c`` and the
    link at ``1 / d``. A transfer that finds the link idle takes ``alone``; one that finds it busy
    adds ``queued``, hiding its latency, yet cannot be done sooner than ``alone`` after its start.
    With c = d = 1 and one curve this is the classic ``end = max(end, ready + work) + transfer``.
    """
    backlog = end - ready
    if work * c < backlog * d:
        ready += work * c
        return ready, max(end + work * (c - c / d) + queued, ready + alone)
    ready += work + backlog * d * (1 - 1 / c)
    return ready, ready + alone


def serial_timeline(costs: Costs) -> tuple[Event, ...]:
    """The whole GEMM, then the whole collective."""
    done = costs.gemm(costs.problem.m)
    return (Event("compute", 0, 0.0, done), Event("communication", 0, done, costs.serial()))


def chunked_timeline(costs: Costs, rows: Sequence[int]) -> tuple[Event, ...]:
    """Start and end of every group's GEMM and collective, by group."""
    c, d = costs.target.compute_slowdown, costs.target.link_slowdown
    ready = end = 0.0
    compute: list[Event] = []
    communication: list[Event] = []
    waiting: deque[tuple[int, float]] = deque()
    for group, count in enumerate(rows):
        start, work = ready, costs.gemm(count) + costs.issue()
        # Sending nothing gives when the link is free of the groups before.
        free = advance(start, end, work, 0.0, 0.0, c, d)[1]
        ready, end = advance(start, end, work, *costs.sent(count, is_first=group == 0), c, d)
        compute.append(Event("compute", group, start, ready))
        communication += _drain(waiting, start, ready, d)
        waiting.append((group, end - free))
    communication += _drain(waiting, ready, float("inf"), 1.0)
    return _by_group(compute, _joined(communication))


def _drain(
    waiting: deque[tuple[int, float]], start: float, until: float, slowdown: float
) -> Iterator[Event]:
    """What the link does from ``start`` to ``until``; takes the work done off ``waiting``."""
    now = start
    while waiting and now < until:
        group, work = waiting.popleft()
        done = now + work * slowdown
        if done > until:
            waiting.appendleft((group, work - (until - now) / slowdown))
            done = until
        yield Event("communication", group, now, done)
        now = done


def _joined(pieces: Sequence[Event]) -> list[Event]:
    """One event a group: a transfer that spans several GEMMs comes in pieces."""
    spans: dict[int, Event] = {}
    for piece in pieces:
        start = spans[piece.group].start if piece.group in spans else piece.start
        spans[piece.group] = Event(piece.lane, piece.group, start, piece.end)
    return list(spans.values())


def _by_group(compute: Sequence[Event], communication: Sequence[Event]) -> tuple[Event, ...]:
    pairs = zip(compute, communication, strict=True)
    return tuple(event for pair in pairs for event in pair)
