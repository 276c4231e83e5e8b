"""A measured curve: seconds of one call as a function of its bytes."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import exp, log

# Ranks must plan alike, and the last bits of `log` and `exp` differ between C libraries. Times are
# rounded far below what can be measured, so that such a bit is not what decides a plan.
ROUNDED_TO_DIGITS = 10


@dataclass(frozen=True)
class Curve:
    """Seconds of a call that moves a number of bytes, through measured points.

    Between two points the curve is straight in log(bytes), log(seconds): a line through latency
    and bandwidth alone misses real collectives by 14 to 24 %. Below the first point it is constant
    (latency). Above the last, more bytes move at the bandwidth of the last point, or at that
    between the last two where it is lower.
    """

    points: tuple[tuple[int, float], ...]
    """(bytes, seconds), bytes strictly rising, both above zero."""

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a curve needs at least one point")
        if any(size <= 0 or seconds <= 0 for size, seconds in self.points):
            raise ValueError("bytes and seconds of a curve must be above zero")
        sizes = [size for size, _ in self.points]
        if any(left >= right for left, right in pairwise(sizes)):
            raise ValueError("bytes of a curve must rise from point to point")

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(size for size, _ in self.points)

    @cached_property
    def rises(self) -> bool:
        """Whether more bytes never take less time."""
        return all(left[1] <= right[1] for left, right in pairwise(self.points))

    def seconds(self, size: float) -> float:
        """Seconds of a call that moves ``size`` bytes; nothing moved takes no time."""
        if size <= 0:
            return 0.0
        above = bisect_right(self._sizes, size)
        if above == 0:
            seconds = self.points[0][1]
        elif above == len(self.points):
            seconds = self._beyond(size)
        else:
            seconds = _log_line(self.points[above - 1], self.points[above], size)
        return round(seconds, ROUNDED_TO_DIGITS)

    def _beyond(self, size: float) -> float:
        last_size, last_seconds = self.points[-1]
        slope = last_seconds / last_size
        if len(self.points) > 1:
            # A link that has saved up credit while idle spends it on the first bytes only.
            before_size, before_seconds = self.points[-2]
            slope = max(slope, (last_seconds - before_seconds) / (last_size - before_size))
        return last_seconds + (size - last_size) * slope


def _log_line(left: tuple[int, float], right: tuple[int, float], size: float) -> float:
    share = log(size / left[0]) / log(right[0] / left[0])
    return left[1] * exp(share * log(right[1] / left[1]))
