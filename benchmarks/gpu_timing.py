"""Times of work on a GPU: device events, candidates interleaved, a budget of wall-clock time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.paired import Samples, round_orders

WARM_UPS = 3
LEAST_ROUNDS = 7
"""Below six rounds no 95 % interval of a median exists."""
MOST_ROUNDS = 40


@dataclass(frozen=True)
class Deadline:
    """The wall-clock time by which a part of the benchmarks has to end."""

    ends: float
    """By ``time.monotonic``."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left; not below zero."""
        return max(self.ends - time.monotonic(), 0.0)

    def share(self, parts: int) -> Deadline:
        """The deadline of the next one of ``parts`` equal parts of what is left."""
        return Deadline.after(self.left() / max(parts, 1))


def measure_on_device(
    candidates: Mapping[str, Callable[[], object]], deadline: Deadline, seed: int
) -> Samples:
    """Seconds of every candidate by device events, once a round, in random order within a round.

    A candidate leaves all its work ordered before the end of the current stream. Ends by the
    deadline, but measures ``LEAST_ROUNDS`` rounds even if that takes longer.
    """
    for run in candidates.values():
        for _ in range(WARM_UPS):
            run()
    torch.cuda.synchronize()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index, order in enumerate(round_orders(list(candidates), MOST_ROUNDS, seed)):
        if index >= LEAST_ROUNDS and not deadline.left():
            break
        for name in order:
            seconds[name].append(device_seconds(candidates[name]))
    return Samples({name: tuple(values) for name, values in seconds.items()})


def device_seconds(run: Callable[[], object]) -> float:
    """Device time of one run on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # The host is behind by a launch otherwise, and its gaps would be timed.
    torch.cuda._sleep(HEAD_START_CYCLES)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


HEAD_START_CYCLES = 400_000
"""Some 200 us of idling on a GPU near 2 GHz, in which the host launches what is timed."""
