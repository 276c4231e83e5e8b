"""Times of work on a GPU: device events, candidates interleaved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.measuring.deadline import Deadline
from benchmarks.measuring.paired import Samples, round_orders
from overlapc.planning.ratios import Ratio

WARM_UPS = 3
LEAST_ROUNDS = 7
"""Below six rounds no 95 % interval of a median exists."""
MOST_ROUNDS = 40
LEAST_AHEAD_SECONDS, MOST_AHEAD_SECONDS = 200e-6, 20e-3
AHEAD = 1.5
"""Of what the launches took before: chosen, for a host that varies."""
LEAST_TIMED_SECONDS, MOST_CALLS = 150e-6, 8
"""Between two events, in so many calls at most: an event adds a microsecond or two. Chosen."""
CYCLES_PER_SECOND = 2e9
"""Near the fastest clock of a GPU; a slower one idles for longer."""


def measure_on_device(
    candidates: Mapping[str, Callable[[], object]], deadline: Deadline, seed: int
) -> Samples:
    """Seconds of a call of every candidate by device events, once a round, in random order within a
    round: of one call, or the mean of some in a row where one is short; of all candidates as many,
    for the events add to each, and would add differently to what is compared.

    A candidate leaves all its work ordered before the end of the current stream. Ends by the
    deadline, but measures ``LEAST_ROUNDS`` rounds even if that takes longer.
    """
    ahead = {name: warmed_up(run) for name, run in candidates.items()}
    calls = max(calls_in_a_row(run, ahead[name]) for name, run in candidates.items())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index, order in enumerate(round_orders(list(candidates), MOST_ROUNDS, seed)):
        if index >= LEAST_ROUNDS and not deadline.left():
            break
        for name in order:
            seconds[name].append(device_seconds(candidates[name], ahead[name], calls))
    return Samples({name: tuple(values) for name, values in seconds.items()})


def warmed_up(run: Callable[[], object]) -> float:
    """Seconds that a host takes to launch a run which has been run before."""
    taken = LEAST_AHEAD_SECONDS
    for _ in range(WARM_UPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        taken = time.perf_counter() - start
    torch.cuda.synchronize()
    return taken


def calls_in_a_row(run: Callable[[], object], host_seconds: float) -> int:
    """How many calls to time at once of a run whose launches take a host so long."""
    if MOST_CALLS == 1:
        return 1
    seconds = device_seconds(run, host_seconds)
    return min(math.ceil(LEAST_TIMED_SECONDS / seconds), MOST_CALLS) if seconds else MOST_CALLS


def device_seconds(
    run: Callable[[], object], host_seconds: float = LEAST_AHEAD_SECONDS, calls: int = 1
) -> float:
    """Device time of a run on the current stream, whose launches take a host so long; of several
    in a row the mean.

    The device idles until all has been launched, as in a replay of a CUDA graph: else the gaps
    between launches would be timed.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    ahead = min(max(AHEAD * host_seconds * calls, LEAST_AHEAD_SECONDS), MOST_AHEAD_SECONDS)
    torch.cuda.synchronize()
    torch.cuda._sleep(round(ahead * CYCLES_PER_SECOND))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


def cell(ratio: Ratio) -> list[float]:
    """A ratio as tables hold it: the median and its interval."""
    return [ratio.median, ratio.low, ratio.high]


def raw(samples: Samples) -> dict[str, Any]:
    """Medians in milliseconds, and how often each was measured."""
    names = samples.seconds
    return {"rounds": samples.rounds, "ms": {n: 1e3 * samples.median(n) for n in names}}
