"""Ratios of two candidates' times, paired by round, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


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
