"""How long the planner's exact searches take: ``python -m benchmarks.planner_speed``.

Random problems of every kind on the shipped targets, with links made slower or faster so that
compute and communication come in every proportion: balanced ones take longest. Process time of one
search, without what it finds being remembered; the worst, the median and what the worst was.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from overlapc.planning.column_costs import ColumnCosts
from overlapc.planning.cost import Costs
from overlapc.planning.curve import Curve
from overlapc.planning.cuts import best_cut, quantum
from overlapc.planning.kernel_costs import KernelCosts
from overlapc.planning.problem import COLLECTIVES, Problem, orders_of
from overlapc.planning.rates import Link
from overlapc.planning.search import plan
from overlapc.planning.signaled import MAX_BOUNDARIES, best_cut_of, boundaries, configurations
from overlapc.planning.target import Target, shipped_names
from overlapc.planning.tiles import MOST_SUMS

UNITS, WAVES = 64, MAX_BOUNDARIES
"""Of the chunked and of the signaled search."""

CHUNKED_SECONDS, SIGNALED_SECONDS, PLANNED_SECONDS = 0.050, 0.010, 0.050
"""What each may take at most; the last is of a whole plan on a GPU."""


@dataclass(frozen=True)
class Timed:
    """One search."""

    seconds: float
    problem: Problem
    target: str
    size: int
    """Units, or places where a group may end."""


def chunked(cases: int, seed: int = 0) -> list[Timed]:
    """Time searches for cuts into at most ``UNITS`` units, of which most problems have all.

    Of rows, and of every other producer's columns instead.
    """
    random, names = Random(seed), shipped_names()
    found: list[Timed] = []
    for case in range(cases):
        costs = _random_costs(random, random.choice(names), rows=UNITS * 128)
        if case % 2 and not costs.problem.is_consumer:
            costs = ColumnCosts(costs.problem, costs.target)
        found.append(time_cut(costs))
    return found


def time_cut(costs: Costs) -> Timed:
    """Time one search for a cut."""
    unit = quantum(costs, UNITS)
    return _timed(costs, -(-costs.size // unit), lambda: best_cut(costs, unit))


def signaled(cases: int, seed: int = 0) -> list[Timed]:
    """Time searches for groups of up to ``WAVES`` waves of one kernel, and for its sweep."""
    random = Random(seed)
    names = [name for name in shipped_names() if Target.load(name).device == "cuda"]
    found: list[Timed] = []
    while len(found) < cases:
        costs = _random_costs(random, random.choice(names), rows=1 << 20)
        tiles = configurations(costs.problem, costs.target)
        if not tiles:
            continue
        kernel = KernelCosts(costs.problem, costs.target, random.choice(tiles))
        kernels = kernel.swept
        size = len(boundaries(kernel))
        found.append(_timed(kernel, size, lambda: best_cut_of(kernels)))  # noqa: B023
    return found


def planned(cases: int, seed: int = 0) -> list[Timed]:
    """Time whole plans on GPUs, of all schedules and configurations; by rows."""
    random = Random(seed)
    names = [name for name in shipped_names() if Target.load(name).device == "cuda"]
    found: list[Timed] = []
    for _ in range(cases):
        costs = _random_costs(random, random.choice(names), rows=8192)
        search = partial(plan, costs.problem, costs.target)
        found.append(_timed(costs, costs.problem.m, search))
    return found


def _timed(costs: Costs, size: int, search: Callable[[], object]) -> Timed:
    start = time.process_time()
    search()
    taken = time.process_time() - start
    return Timed(taken, costs.problem, costs.target.name, size)


def _random_costs(random: Random, name: str, rows: int) -> Costs:
    collective = random.choice(COLLECTIVES)
    world_size = random.choice([2, 3, 4, 6, 8])
    target = Target.load(name)
    problem = Problem(
        world_size * int(rows / world_size * 10 ** random.uniform(-0.3, 0.3)),
        int(10 ** random.uniform(2.8, 4.2)),
        int(10 ** random.uniform(2.8, 4.2)),
        target.gemm[0].dtype,
        collective,
        world_size,
        order=random.choice(orders_of(collective)),
        kernel_sums=MOST_SUMS,
    )
    # Slowdowns within what leaves something to gain.
    c, d = random.uniform(1, 1.5), random.uniform(1, 1.5)
    factor = 10 ** random.uniform(-1.5, 1.5)
    links = tuple(_slower(link, factor) for link in target.links)
    return Costs(problem, replace(target, links=links, compute_slowdown=c, link_slowdown=d))


def _slower(link: Link, factor: float) -> Link:
    alone, queued = (
        Curve(tuple((size, seconds * factor) for size, seconds in curve.points))
        for curve in (link.alone, link.queued)
    )
    return replace(link, alone=alone, queued=queued)


def _lines(what: str, limit: float, found: list[Timed]) -> Iterator[str]:
    worst = max(found, key=lambda timed: timed.seconds)
    median = statistics.median(timed.seconds for timed in found)
    p, sizes = worst.problem, [timed.size for timed in found]
    yield (
        f"{what}: {len(found)} searches of {min(sizes)} to {max(sizes)} {_PLACES[what]}, worst "
        f"{worst.seconds * 1e3:.1f} ms of {limit * 1e3:g} ms, median {median * 1e3:.1f} ms"
    )
    yield f"  worst: {p.kind} {p.m}x{p.n}x{p.k} over {p.world_size} on {worst.target}"


_PLACES = {"chunked": "units", "signaled": "waves", "planned": "rows"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.planner_speed", description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="searches of each schedule")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    for line in (
        *_lines("chunked", CHUNKED_SECONDS, chunked(chosen.cases, chosen.seed)),
        *_lines("signaled", SIGNALED_SECONDS, signaled(chosen.cases, chosen.seed)),
        *_lines("planned", PLANNED_SECONDS, planned(chosen.cases, chosen.seed)),
    ):
        print(line)


if __name__ == "__main__":
    main()
