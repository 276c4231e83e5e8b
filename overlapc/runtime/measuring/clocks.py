"""How long calls take: on a device or a host, from cold caches, in rounds of random order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

COLD_BYTES = 512 << 20
"""Of weights that are read in turn: several times the last cache of any device here."""
MOST_COPIES = 64
LEAST_CALLS = 16
"""Between two synchronisations, where a host launches each."""
FEWEST_ROUNDS, MOST_ROUNDS = 9, 41
"""Below six no 95 % interval exists; above, the interval hardly narrows. Chosen."""

Call = Callable[[Sequence[torch.Tensor]], Any]
Clock = Callable[[Call, Sequence[Sequence[torch.Tensor]]], Callable[[], float]]
"""Makes what gives the seconds of one call, of several on these operands in turn."""


def seconds_of(
    runs: Mapping[str, Call],
    operands: Sequence[Sequence[torch.Tensor]],
    clock: Clock,
    seconds: float,
    seed: int,
) -> dict[str, list[float]]:
    """Return the seconds of a call of each run in every round, of about so many seconds."""
    timers = {name: clock(run, operands) for name, run in runs.items()}
    once = {name: timer() for name, timer in timers.items()}  # warms up as well
    turn = len(operands) * sum(once.values())
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / turn) if turn else MOST_ROUNDS))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(seed)
    for _ in range(rounds):
        for name in order.sample(list(runs), len(runs)):
            times[name].append(timers[name]())
    return times


def on_host(run: Call, operands: Sequence[Sequence[torch.Tensor]]) -> Callable[[], float]:
    """Seconds of a call on a processor: every list of operands once."""

    def seconds() -> float:
        start = time.perf_counter()
        for given in operands:
            run(given)
        return (time.perf_counter() - start) / len(operands)

    return seconds


def one_by_one(run: Call, operands: Sequence[Sequence[torch.Tensor]]) -> Callable[[], float]:
    """Seconds of a call where a host launches each: the longer of what it and the device take."""
    turns = max(1, LEAST_CALLS // len(operands))

    def seconds() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(turns):
            for given in operands:
                run(given)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / (turns * len(operands))

    return seconds


def on_device(run: Call, operands: Sequence[Sequence[torch.Tensor]]) -> Callable[[], float]:
    """Device seconds of a call in a CUDA graph of one call on every list of operands.

    It is captured once: every capture empties torch's cache of device memory, and costs the host
    more than a replay takes.
    """
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # which fills the operands
    with torch.cuda.stream(side):
        run(operands[0])
    side.synchronize()
    with torch.cuda.graph(graph):
        for given in operands:
            run(given)

    def seconds() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / len(operands)

    return seconds
