"""Paired measurement: candidates in random order within a round, compared round by round.

A machine drifts, and other programs come and go. What hits a whole round hits all of its
candidates, so the ratio of two candidates *of one round* is far steadier than the ratio of their
medians.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from overlapc.planning.ratios import Ratio, median_ratio, paired_ratios


class Ranks(Protocol):
    """What ``measure`` needs of the processes that measure together."""

    def barrier(self) -> None:
        """Return when every rank has called it."""
        ...

    def gather(self, value: dict[str, list[float]]) -> list[dict[str, list[float]]]:
        """The value of every rank, in the same order on all of them."""
        ...


class Alone:
    """The ranks of ``measure``: this process is all of them."""

    def barrier(self) -> None:
        """Nobody is waited for."""

    def gather(self, value: dict[str, list[float]]) -> list[dict[str, list[float]]]:
        """The one value."""
        return [value]


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
        return median_ratio(self.ratios(numerator, denominator))

    def ratios(self, numerator: str, denominator: str) -> list[float]:
        """The ratio of two candidates' times in every round."""
        return paired_ratios(self.seconds[numerator], self.seconds[denominator])

    def every_other(self, first: int) -> Samples:
        """Half of the rounds: from number ``first``, 0 or 1, every second one."""
        return Samples({name: times[first::2] for name, times in self.seconds.items()})


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
