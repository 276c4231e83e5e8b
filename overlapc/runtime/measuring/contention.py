"""Measure what compute and a collective do to each other, side by side and in a schedule."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from overlapc.planning.fitting import Pipeline, SideBySide, rounded
from overlapc.planning.problem import Problem
from overlapc.planning.rates import Link
from overlapc.runtime.measuring.bench import GEMM_BESIDE, Bench
from overlapc.runtime.measuring.link_curves import MOST_ROUNDS, SMALLEST_BYTES, TRAIN, Calls, Pair
from overlapc.runtime.measuring.trials import Trial

SIDE_BY_SIDE_BYTES = 1 << 20
"""Of each collective that GEMMs are run beside, or less on a slow link: as large as groups are."""

ROUNDS_SIDE_BY_SIDE = 5
"""Of which the median is taken."""

FEWEST_ROUNDS = 2
"""Of a pipeline, however slow its link is."""

PIPELINED = 16
"""Groups of a pipeline that is run to see what a group costs beside its GEMM."""


def contention(bench: Bench, link: Link, seconds: float) -> tuple[float, float]:
    """How much slower compute and link run beside each other: (c, d), medians of rounds."""
    # A round is a train alone, GEMMs alone and both together: about 2.5 trains long.
    train_seconds = seconds / ROUNDS_SIDE_BY_SIDE / 2.5
    size = SIDE_BY_SIDE_BYTES
    while size > SMALLEST_BYTES and TRAIN * link.queued.seconds(size) > train_seconds:
        size //= 2
    count = int(train_seconds / link.queued.seconds(size))
    calls = Calls(bench, link.collective)
    pairs = calls.buffers(size, max(TRAIN, min(64, count)))
    whole = bench.slowest(calls.train(pairs).seconds)
    mm = bench.mm(*GEMM_BESIDE, "float32")
    one = bench.slowest(statistics.median(bench.repeat(mm, 0.05)))
    # Half as long as the train, so the link stays busy while they run.
    gemms = range(max(1, int(0.5 * whole / one)))
    found = [
        _side_by_side(calls, pairs, lambda: [mm() for _ in gemms])
        for _ in range(ROUNDS_SIDE_BY_SIDE)
    ]
    c = statistics.median(both.compute_slowdown for both in found)
    d = statistics.median(both.link_slowdown for both in found)
    return rounded(bench.slowest(c)), rounded(bench.slowest(d))


def _side_by_side(calls: Calls, pairs: Sequence[Pair], compute: Callable[[], Any]) -> SideBySide:
    bench = calls.bench
    bench.together()
    compute_alone = bench.seconds(compute)
    link_alone = calls.train(pairs).seconds
    bench.rest()
    start = bench.now()
    works = calls.start(pairs)
    issued = time.perf_counter() - start
    compute()
    bench.computed()
    computed = time.perf_counter() - start
    for work in works:
        work.wait()
    return SideBySide(compute_alone, link_alone, computed, bench.now() - start, issued)


def pipeline(bench: Bench, link: Link, order: str, seconds: float) -> Pipeline:
    """A chunked schedule of small equal groups, as a plan would run it."""
    rows, n, k = GEMM_BESIDE
    rows = -(-rows // bench.world_size) * bench.world_size
    problem = Problem(
        rows * PIPELINED, n, k, "float32", link.collective, bench.world_size, order=order
    )
    lasts = PIPELINED * link.queued.seconds(problem.sent_bytes(rows))
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / lasts)))
    trial = Trial(problem, bench.group, bench.device)
    times = []
    for _ in range(rounds):
        bench.rest()
        times.append(trial.run((rows,) * PIPELINED).computing)
    return Pipeline(problem, rows, bench.slowest(statistics.median(times)))
