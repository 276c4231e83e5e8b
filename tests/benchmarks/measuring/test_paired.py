"""Paired statistics against synthetic times whose truth is known, with the mutants they catch."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from benchmarks.measuring.paired import Samples, measure, round_orders, slowest_rank
from overlapc.planning.ratios import Ratio, median_ratio, order_statistic, paired_ratios

Ratios = Callable[[Sequence[float], Sequence[float]], list[float]]


def drifting(ratio: float, rounds: int, seed: int) -> tuple[list[float], list[float]]:
    """Times of two candidates on a machine that slows down up to threefold from round to round."""
    generator = random.Random(seed)
    drift = [generator.uniform(1, 3) for _ in range(rounds)]
    slow = [ratio * d * generator.gauss(1, 0.005) for d in drift]
    fast = [d * generator.gauss(1, 0.005) for d in drift]
    return slow, fast


def finds_the_ratio_under_drift(ratios: Ratios) -> bool:
    found = [median_ratio(ratios(*drifting(1.05, 15, seed))) for seed in range(20)]
    narrow = all(ratio.high - ratio.low < 0.03 for ratio in found)
    return narrow and all(abs(ratio.median - 1.05) < 0.01 for ratio in found)


def unpaired(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return [
        above / below for above, below in zip(sorted(slow), reversed(sorted(fast)), strict=True)
    ]


def shifted_by_one_round(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return paired_ratios(slow, [*fast[1:], fast[0]])


def to_the_median(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return [above / statistics.median(fast) for above in slow]


def inverted(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return paired_ratios(fast, slow)


def test_paired_ratios_see_through_drift() -> None:
    assert finds_the_ratio_under_drift(paired_ratios)


@pytest.mark.parametrize("mutant", [unpaired, shifted_by_one_round, to_the_median, inverted])
def test_other_ratios_do_not(mutant: Ratios) -> None:
    assert not finds_the_ratio_under_drift(mutant)


@pytest.mark.parametrize(
    ("count", "left_out"),
    # The published table of 95 % sign-test intervals of a median.
    [(5, None), (6, 0), (8, 0), (9, 1), (10, 1), (15, 3), (20, 5), (25, 7), (30, 9), (50, 17)],
)
def test_order_statistics_are_those_of_the_sign_test(count: int, left_out: int | None) -> None:
    assert order_statistic(count, 0.95) == left_out


def coverage(interval: Callable[[Sequence[float]], Ratio], count: int) -> float:
    """Share of skewed samples whose interval holds the true median, which is 1."""
    generator = random.Random(5)
    trials = [median_ratio_of_skewed(interval, generator, count) for _ in range(3000)]
    return sum(ratio.low <= 1 <= ratio.high for ratio in trials) / len(trials)


def median_ratio_of_skewed(
    interval: Callable[[Sequence[float]], Ratio], generator: random.Random, count: int
) -> Ratio:
    return interval([generator.lognormvariate(0, 0.7) for _ in range(count)])


def one_too_few(ratios: Sequence[float]) -> Ratio:
    ordered, outside = sorted(ratios), order_statistic(len(ratios), 0.95)
    assert outside is not None
    return Ratio(statistics.median(ordered), ordered[outside + 1], ordered[-2 - outside])


def normal_around_the_mean(ratios: Sequence[float]) -> Ratio:
    mean, spread = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    return Ratio(mean, mean - 1.96 * spread, mean + 1.96 * spread)


@pytest.mark.parametrize("count", [12, 20])
def test_the_interval_covers_what_it_promises(count: int) -> None:
    assert 0.94 <= coverage(median_ratio, count) <= 0.985


@pytest.mark.parametrize("mutant", [one_too_few, normal_around_the_mean])
def test_other_intervals_do_not(mutant: Callable[[Sequence[float]], Ratio]) -> None:
    assert coverage(mutant, 20) < 0.94


def test_too_few_rounds_bound_nothing() -> None:
    ratio = median_ratio([1.0, 1.1, 1.2, 1.3, 1.4])
    assert (ratio.median, ratio.low, ratio.high) == (1.2, -math.inf, math.inf)


def test_orders_are_shared_and_each_candidate_stands_everywhere() -> None:
    names = ["serial", "bound", "parts"]
    orders = round_orders(names, 600, seed=3)
    assert orders == round_orders(names, 600, seed=3)
    assert orders != round_orders(names, 600, seed=4)
    assert all(sorted(order) == sorted(names) for order in orders)
    for place in range(len(names)):
        counts = Counter(order[place] for order in orders)
        assert all(150 < counts[name] < 250 for name in names)


def test_a_round_takes_as_long_as_its_slowest_rank() -> None:
    samples = slowest_rank([{"a": [1.0, 5.0], "b": [2.0, 2.0]}, {"a": [3.0, 4.0], "b": [1.0, 7.0]}])
    assert samples.seconds == {"a": (3.0, 5.0), "b": (2.0, 7.0)}


def test_the_ratio_of_samples_is_paired() -> None:
    samples = Samples({"slow": (2.0, 40.0, 3.0), "fast": (1.0, 10.0, 3.0)})
    assert samples.ratio("slow", "fast").median == 2.0
    assert samples.median("slow") / samples.median("fast") == 1.0


def test_samples_with_a_missing_round_are_refused() -> None:
    with pytest.raises(ValueError, match="every round"):
        Samples({"a": (1.0, 2.0), "b": (1.0,)})


class OneRank:
    """Records what ``measure`` asks of the ranks."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def barrier(self) -> None:
        self.log.append("barrier")

    def gather(self, value: dict[str, list[float]]) -> list[dict[str, list[float]]]:
        other = {name: [1000.0 + seconds for seconds in times] for name, times in value.items()}
        return [value, other]


def test_measure_runs_every_candidate_once_a_round_behind_a_barrier() -> None:
    log: list[str] = []
    candidates = {name: (lambda name=name: log.append(name)) for name in ("a", "b", "c")}
    samples = measure(
        candidates, OneRank(log), rounds=4, seed=11, before=lambda: log.append("before")
    )
    expected = [
        step
        for order in round_orders(["a", "b", "c"], 4, 11)
        for name in order
        for step in ("before", "barrier", name)
    ]
    assert log == expected
    assert samples.rounds == 4
    assert all(times[0] > 1000 for times in samples.seconds.values())
