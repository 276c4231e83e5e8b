"""Seconds of a problem on a target, however it is cut. `formulas` states the same in symbols."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from overlapc.planning.curve import Curve
from overlapc.planning.problem import ROWS, Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target

ROW_GRANULARITY = 16
"""Rows of the smallest unit where the target's tile is smaller still: the register blocks of CPU
libraries are up to 16 rows high, and the rate falls below that."""


@dataclass(frozen=True)
class Costs:
    """The times of one problem on one target. Raises TargetError where the target lacks a rate.

    Groups are of rows; `column_costs` has those of columns. Every group passes two lanes, one after
    the other: a producer's compute and then link, a consumer's link and then compute. `step` and
    `backlog` are what `advance` needs of them.
    """

    problem: Problem
    target: Target

    by: ClassVar[str] = ROWS
    """What groups are made of."""

    @property
    def size(self) -> int:
        """Rows of the problem, all groups together."""
        return self.problem.m

    @property
    def granule(self) -> int:
        """Every group is a multiple of so many rows."""
        return self.problem.granule

    @property
    def tile(self) -> int:
        """Rows of the smallest group that computes about as fast per row as all of them."""
        return max(self.rates.tile_rows, ROW_GRANULARITY)

    @cached_property
    def rates(self) -> GemmRates:
        """GEMM rates for the problem's dtype."""
        return self.target.rates(self.problem)

    @cached_property
    def link(self) -> Link | None:
        """The link among the ranks; None for a group of one."""
        return self.target.link(self.problem) if self.problem.world_size > 1 else None

    # Compute

    def gemm(self, rows: int, /, *, beside: bool = False) -> float:
        """Seconds of a library GEMM on ``rows`` rows and its share of the pointwise work.

        ``beside`` a collective it has the whole waves of the places that are left to it, but not
        yet the slowdown: `advance` adds that for as long as there is a collective.
        """
        if not rows:
            return 0.0
        p = self.problem
        extra = p.epilogue_bytes * rows // p.m
        least = self.waves_beside(rows, p.n) if beside else 0.0
        return self.rates.seconds(rows, p.n, p.k, p.item_bytes, extra, least)

    def waves_beside(self, rows: int, n: int) -> float:
        """Waves of a result on the multiprocessors that a collective leaves, over the slowdown.

        A tile that finds no place is one more wave, for however short a time places are taken: 512
        tiles on 128 multiprocessors are 4 waves, and 5 while a collective holds 2 of them
        (published: 1.37 ms for 1.0 ms, FlashOverlap, arXiv 2504.19519, whose own model counts so).
        """
        taken = self.target.communication_sms
        return self.rates.waves(rows, n, taken) / self.slowdowns[0] if taken else 0.0

    def issue(self, rows: int) -> float:
        """Seconds of compute that a group of ``rows`` rows costs beside its GEMM."""
        if self.link is None:
            return 0.0
        constant = self.link.issue_seconds
        if self.problem.is_consumer:
            constant = self.link.consumer_issue_seconds
        return constant + self.blocking(rows)

    def blocking(self, rows: int) -> float:
        """Seconds for which starting a collective over ``rows`` rows keeps compute waiting."""
        if self.link is None or self.link.issue is None:
            return 0.0
        return self._link_seconds(self.link.issue, rows)

    def compute(self, rows: int, /, *, beside: bool = False) -> float:
        """Seconds of compute of a group of ``rows`` rows, without those computed before it came;
        ``beside`` as of `gemm`."""
        return self.gemm(rows - self.problem.local_rows(rows), beside=beside) + self.issue(rows)

    # Communication

    def alone(self, rows: int) -> float:
        """Seconds of a collective over ``rows`` rows on an idle link."""
        return self._link_seconds(self.link.alone, rows) if self.link else 0.0

    def queued(self, rows: int) -> float:
        """Seconds that ``rows`` rows add to a train of collectives."""
        return self._link_seconds(self.link.queued, rows) if self.link else 0.0

    def sent(self, rows: int, *, is_first: bool) -> tuple[float, float]:
        """Seconds of a producer's collective on an idle and on a busy link: ``alone``, ``queued``.

        The first group finds the link rested: a bucket that has filled up can make it quicker than
        those that follow. A later one is never quicker for finding the link idle. What starting the
        call takes was measured as part of it, and is the compute's here.
        """
        alone, queued = self.alone(rows), self.queued(rows)
        if blocking := self.blocking(rows):
            alone = max(alone - blocking, min(alone, queued))
        return (alone if is_first else max(alone, queued)), queued

    def _link_seconds(self, curve: Curve, rows: int) -> float:
        if self.link is None:
            return 0.0
        return self.link.scaled(curve, self.sent_bytes(rows), self.problem.world_size)

    def sent_bytes(self, rows: int, /) -> int:
        """Bytes that ``rows`` rows of what is communicated have, whole on one rank."""
        return self.problem.sent_bytes(rows)

    # Both

    def step(self, rows: int, *, is_first: bool) -> tuple[float, float, float]:
        """``work``, ``alone`` and ``queued`` of `advance` for a group of ``rows`` rows.

        A producer's first group has all multiprocessors, and every later one begins beside the
        collective of the one before. A consumer's collectives are all issued at the start, so every
        one but the first is queued; and a GEMM takes the same time whether or not another one has
        just been computed, and whether or not it is the last, beside which nothing comes.
        """
        if not self.problem.is_consumer:
            return self.compute(rows, beside=not is_first), *self.sent(rows, is_first=is_first)
        computed = self.compute(rows)
        return self.alone(rows) if is_first else self.queued(rows), computed, computed

    @cached_property
    def backlog(self) -> float:
        """Seconds of work in the second lane before any group: a consumer's local GEMM."""
        local = self.problem.local_rows(self.problem.m)
        return self.gemm(local) if local else 0.0

    @cached_property
    def slowdowns(self) -> tuple[float, float]:
        """``c`` and ``d`` of `advance`: how much slower the first and the second lane run beside
        each other."""
        c, d = self.target.slowdowns(self.problem)
        return (d, c) if self.problem.is_consumer else (c, d)

    def plain(self, rows: int) -> float:
        """Seconds of the backend's own collective over ``rows`` rows on an idle link."""
        link = self.link
        return self._link_seconds(link.plain or link.alone, rows) if link else 0.0

    def serial(self) -> float:
        """Seconds of the whole GEMM and then the collective, as a graph that is left alone does."""
        return self.gemm(self.size) + self.plain(self.size)

    def least_sent(self) -> float:
        """Seconds for which every cut keeps the link busy at least, however it is cut."""
        size = self.sent_bytes(self.size)
        if self.link is None or not size:
            return 0.0
        first = [self.link.alone]
        if not self.problem.is_consumer and self.link.issue is not None:
            first.append(self.link.queued)  # what `sent` may come down to
        return self.link.least(first, size, self.problem.world_size)

    def bound(self) -> float:
        """Seconds of both when neither waits for the other, under the target's contention.

        No cut into groups of these costs is quicker: together they compute at least one whole GEMM
        and send for `least_sent`. Where both at once gain nothing, they take turns.
        """
        c, d = self.target.slowdowns(self.problem)
        sent, computed = self.least_sent(), self.gemm(self.size)
        saved = max(0.0, 1 / c + 1 / d - 1) * min(computed * c, sent * d)
        return min(computed + sent - saved, self.serial())


def advance(
    ready: float, end: float, work: float, alone: float, queued: float, c: float, d: float
) -> tuple[float, float]:
    """Pass one more group through the first lane, then the second: the new ``(ready, end)``.

    ``ready`` is when the first lane is done with the groups so far, ``end`` when the second would
    be if nothing more came. Until the second has caught up, the first runs at ``1 / c`` and the
    second at ``1 / d``. A group that finds the second lane idle takes ``alone`` there; one that
    finds it busy adds ``queued``, hiding its latency, yet cannot be done sooner than ``alone``
    after its start.
    With c = d = 1 and one curve this is the classic ``end = max(end, ready + work) + transfer``.
    """
    backlog = end - ready
    if work * c < backlog * d:
        ready += work * c
        return ready, max(end + work * (c - c / d) + queued, ready + alone)
    ready += work + backlog * d * (1 - 1 / c)
    return ready, ready + alone
