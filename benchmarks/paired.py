"""Paired measurement: candidates in random order within a round, compared round by round.

A machine drifts, and other programs come and go. What hits a whole round hits all of its
candidates, so the ratio of two candidates *of one round* is far steadier than the ratio of their
medians.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

CONFIDENCE = 0.95


class Ranks(Protocol):
    """What ``measure`` needs of the processes that measure together."""

    def barrier(self) -> None:
        """Return when every rank has called it."""
        ...

    def gather(self, value: dict[str, list[float]]) -> list[dict[str, list[float]]]:
        """The value of every rank, in the same order on all of them."""
        ...


@dataclass(frozen=True)
class Samples:
    """Seconds of every candidate, one entry a round; entry ``i`` of all of them is one round."""

    seconds: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if len({len(values) for values in self.seconds.values()}) > 1:
            raise ValueError("every candidate runs once in every round")

    @property
    def rounds(self) -> int:
        """How often every candidate ran."""
        return len(next(iter(self.seconds.values()), ()))

    def median(self, name: str) -> float:
        """Median seconds of one candidate."""
        return statistics.median(self.seconds[name])

    def ratio(self, numerator: str, denominator: str) -> Ratio:
        """The paired ratio of two candidates' times: above 1, the denominator is faster."""
        return median_ratio(paired_ratios(self.seconds[numerator], self.seconds[denominator]))


@dataclass(frozen=True)
class Ratio:
    """A median ratio and its 95 % confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """One ratio a round."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def median_ratio(ratios: Sequence[float]) -> Ratio:
    """The median, and the exact sign-test interval around it: no assumption on how times spread."""
    ordered = sorted(ratios)
    outside = order_statistic(len(ordered), CONFIDENCE)
    median = statistics.median(ordered)
    if outside is None:
        return Ratio(median, -math.inf, math.inf)
    return Ratio(median, ordered[outside], ordered[-1 - outside])


def order_statistic(count: int, confidence: float) -> int | None:
    """How many of the smallest (and of the largest) values the interval of the median leaves out.

    The median lies left of the j-th smallest of ``count`` values with the probability that fewer
    than j of ``count`` fair coins show heads. None where even all values together cover less than
    ``confidence``: below six values for 95 %.
    """
    tail = 0.0
    for left_out in range(count // 2 + 1):
        tail += math.comb(count, left_out) / 2**count
        if 2 * tail > 1 - confidence:
            return left_out - 1 if left_out else None
    return None


def round_orders(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """A random order of the candidates for each round; the same on all ranks for the same seed."""
    generator = random.Random(seed)
    return [generator.sample(list(names), len(names)) for _ in range(rounds)]


def slowest_rank(per_rank: Sequence[Mapping[str, Sequence[float]]]) -> Samples:
    """A round of ranks takes as long as its slowest rank."""
    names = per_rank[0].keys()
    return Samples(
        {
            name: tuple(
                max(times) for times in zip(*(rank[name] for rank in per_rank), strict=True)
            )
            for name in names
        }
    )


def measure(
    candidates: Mapping[str, Callable[[], object]],
    ranks: Ranks,
    *,
    rounds: int,
    seed: int,
    before: Callable[[], object] = lambda: None,
) -> Samples:
    """Time every candidate once a round, in a random order shared by all ranks.

    Every rank calls this with the same names, rounds and seed. ``before`` runs untimed ahead of
    each run, and the barrier after it. Candidates must be warm: compiled and run once. Every rank
    gets the same samples.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for order in round_orders(list(candidates), rounds, seed):
        for name in order:
            before()
            ranks.barrier()
            start = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - start)
    return slowest_rank(ranks.gather(seconds))
