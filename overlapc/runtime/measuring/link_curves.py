"""Measure how long one collective of a group takes, by its bytes: alone, in trains, to start."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from overlapc.errors import GroupError
from overlapc.planning.fitting import blocking_curve, rising_curve, rounded, sustained_curve
from overlapc.planning.rates import Link
from overlapc.runtime.measuring.bench import REST_SECONDS, Bench
from overlapc.runtime.measuring.trial_sending import TrialSender
from overlapc.runtime.ranks.sending import Work, adds_here

SMALLEST_BYTES, LARGEST_BYTES = 1 << 12, 1 << 25
"""Collectives measured, by factors of two: from pure latency to pure bandwidth."""

ENOUGH_BYTES = 1 << 20
"""Measured however long it takes: below it, a curve may know latency only."""

TRAIN = 6
"""Calls in a train of asynchronous ones: about as many as plans have groups."""

APART_SECONDS = 2e-3
"""Between the starts of one rank and of the others, as after GEMMs of some tens of milliseconds.
gloo's all-gather and all-to-all use both directions of a link at once only where all ranks start
within about its latency, which in a model they never do."""

MOST_ROUNDS = 5
"""Of one size: their median is steady enough."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Where a call receives, and what it sends."""


@dataclass(frozen=True)
class Train:
    """Some asynchronous calls that were started one right after the other."""

    seconds: float
    """From the last rank's first start to the last end on any rank."""
    issued: float
    """To start one call."""


@dataclass(frozen=True)
class Calls:
    """One collective of a bench's group, to be called and timed."""

    bench: Bench
    collective: str
    plain: bool = False
    """By the backend's own collective, where a schedule sends in another way."""

    def buffers(self, size: int, count: int) -> list[Pair]:
        """Tensors for so many calls that each move ``size`` bytes, whole on one rank."""
        ranks, device = self.bench.world_size, self.bench.device
        whole = max(ranks, size // 4 // ranks * ranks)
        out = whole // ranks if self.collective == "reduce_scatter" else whole
        sent = whole // ranks if self.collective == "all_gather" else whole
        # Zeros stay finite however often they are added up; time does not depend on values.
        pairs = [
            (torch.zeros(out, device=device), torch.zeros(sent, device=device))
            for _ in range(count)
        ]
        return [(b, b) for _, b in pairs] if self.collective == "all_reduce" else pairs

    def start(self, pairs: Sequence[Pair]) -> list[Work]:
        """Start one call a pair, the way a schedule does."""
        sender = TrialSender(self.collective, self.bench.group, self.bench.device)
        start = sender.start_plain if self.plain else sender.start
        return [start(self.bench.group, out, sent) for out, sent in pairs]

    def train(self, pairs: Sequence[Pair], turn: int = 0) -> Train:
        """One asynchronous call a pair, after a while of compute: as they come in a schedule.

        Ranks take turns in starting ``APART_SECONDS`` late; time counts from the late start.
        """
        self.bench.rest()
        late = turn % self.bench.world_size == dist.get_rank(self.bench.group)
        start = self.bench.now() + APART_SECONDS
        while late and time.perf_counter() < start:
            pass
        begun = time.perf_counter()
        works = self.start(pairs)
        issued = (time.perf_counter() - begun) / len(pairs)
        for work in works:
            work.wait()
        return Train(self.bench.slowest(self.bench.now() - start), issued)


def why_not_sent(bench: Bench, collective: str) -> str:
    """What the group's backend says against a collective, on any member; empty where it sends it.

    Raises GroupError where a member failed.
    """
    calls, said = Calls(bench, collective), ""
    try:
        for work in calls.start(calls.buffers(SMALLEST_BYTES, 1)):
            work.wait()
    except GroupError:
        raise
    except (RuntimeError, ValueError) as error:
        said = str(error) or type(error).__name__
    return bench.refusal(said)


def measure_link(bench: Bench, collective: str, seconds: float) -> Link:
    """The curves of a collective; stops growing when ``seconds`` run out."""
    calls = Calls(bench, collective)
    points: list[_Point] = []
    size, spent = SMALLEST_BYTES, 0.0
    share = seconds / (LARGEST_BYTES // SMALLEST_BYTES).bit_length()
    # The next size takes at most twice as long as this one.
    while size <= ENOUGH_BYTES or (
        size <= LARGEST_BYTES and spent + 2 * points[-1].spent < seconds
    ):
        points.append(_point(calls, size, share, points[-1] if points else None))
        spent += points[-1].spent
        size *= 2
    blocking = blocking_curve((point.size, point.issued) for point in points)
    issue = rounded(statistics.median(point.issued for point in points))
    plain = [(point.size, point.plain) for point in points]
    return Link(
        collective,
        bench.world_size,
        rising_curve((point.size, point.alone) for point in points),
        sustained_curve(((point.size, point.queued) for point in points), ENOUGH_BYTES),
        issue_seconds=0.0 if blocking else issue,
        consumer_issue_seconds=0.0 if blocking else issue,
        issue=blocking,
        plain=rising_curve(plain) if _sends_otherwise(calls) else None,
    )


def _sends_otherwise(calls: Calls) -> bool:
    return adds_here(calls.collective, calls.bench.group, calls.bench.device.type)


@dataclass(frozen=True)
class _Point:
    size: int
    alone: float
    queued: float
    issued: float
    plain: float
    """As ``alone``, of the backend's own collective; the same number where that is what is sent."""
    spent: float
    """Seconds that measuring it took."""


def _point(calls: Calls, size: int, seconds: float, before: _Point | None) -> _Point:
    """One size of the curve, in about ``seconds``; calls that take long are few."""
    bench = calls.bench
    start = bench.now()
    pairs = calls.buffers(size, TRAIN)
    once = bench.slowest(calls.train(pairs[:1]).seconds)
    rounds = min(MOST_ROUNDS, int(seconds / (2 * REST_SECONDS + (1 + TRAIN) * once)))
    single = [calls.train(pairs[:1], turn) for turn in range(max(2, rounds))]
    trains = [calls.train(pairs, turn) for turn in range(rounds)]
    alone = plain = bench.slowest(_typical(single, size))
    if _sends_otherwise(calls):
        own = replace(calls, plain=True)
        trials = [own.train(pairs[:1], turn) for turn in range(len(single))]
        plain = bench.slowest(_typical(trials, size))
    issued = bench.slowest(_undisturbed([train.issued for train in single]))
    if trains:
        # The first call of a train finds the link idle, and the others queue behind it.
        lasted = bench.slowest(statistics.median(train.seconds for train in trains))
        queued = (lasted - alone) / (TRAIN - 1)
    else:
        # What tells the two apart is latency, which does not grow with the size.
        queued = alone + (before.queued - before.alone if before else 0.0)
    # Where noise swapped two times, what is left must still be a time.
    queued = max(queued, alone / TRAIN)
    return _Point(size, alone, queued, issued, plain, bench.slowest(bench.now() - start))


def _typical(calls: Sequence[Train], size: int) -> float:
    """Seconds of one of several single calls."""
    times = [call.seconds for call in calls]
    return _undisturbed(times) if size < ENOUGH_BYTES else statistics.median(times)


def _undisturbed(times: Sequence[float]) -> float:
    """The lower quartile: the latency of one call is mostly what else the machine does."""
    return sorted(times)[len(times) // 4]
