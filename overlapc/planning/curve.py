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
        return round(self._unrounded(size), ROUNDED_TO_DIGITS) if size > 0 else 0.0

    def least_rate(self, size: float) -> float:
        """Fewest seconds a byte of any call that moves up to ``size`` bytes, above zero."""
        # It falls up to the first point, is straight in logarithms up to the last, and rises then.
        return min(self._unrounded(at) / at for at in self._up_to(size))

    def least_beyond(self, rate: float, size: float) -> float:
        """Least of ``seconds(x) - rate * x`` over calls of up to ``size`` bytes, above zero."""
        places = self._up_to(size)
        for (x_0, y_0), (x_1, y_1) in pairwise(self.points):
            slope = log(y_1 / y_0) / log(x_1 / x_0)
            if slope > 1:  # convex: its tangent may have this rate in between
                way = log(rate * x_0 / (slope * y_0)) / (slope - 1)
                if 0 < way < log(min(x_1, size) / x_0):
                    places.append(x_0 * exp(way))
        return min(self._unrounded(at) - rate * at for at in places)

    def _up_to(self, size: float) -> list[float]:
        return [*(at for at in self._sizes if at < size), size]

    def _unrounded(self, size: float) -> float:
        above = bisect_right(self._sizes, size)
        if above == 0:
            return self.points[0][1]
        if above == len(self.points):
            return self._beyond(size)
        return _log_line(self.points[above - 1], self.points[above], size)

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
