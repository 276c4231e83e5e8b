from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import pairwise
from random import Random

import pytest

from overlapc.planning import signaled
from overlapc.planning.cost import Costs, advance
from overlapc.planning.search import plan
from overlapc.planning.signaled import (
    MAX_BOUNDARIES,
    Boundary,
    best_groups,
    boundaries,
    signaled_timeline,
)
from overlapc.planning.target import Target
from tests.planning.machines import CONSUMERS, KINDS, random_problem, random_target
from tests.planning.simulation import simulate


@dataclass(frozen=True)
class Recurrence:
    """The model of a cut, written out, with its terms looked up: no code of the search."""

    signal: float
    sends: dict[tuple[int, bool], tuple[float, float]]
    """Seconds on an idle and on a busy link, by rows and whether they are the first."""

    @classmethod
    def of(cls, costs: Costs, ends: Sequence[Boundary]) -> Recurrence:
        rows = [0, *(end.rows for end in ends)]
        sizes = {
            (after - before, not before)
            for i, after in enumerate(rows)
            for before in rows[:i]
            if after > before
        }
        sends = {(count, first): costs.sent(count, is_first=first) for count, first in sizes}
        return cls(costs.target.signal_seconds, sends)

    def then(self, end: float, done: int, group: Boundary) -> float:
        """When the link is done with one more group, at ``end`` with ``done`` rows."""
        start = group.ready + self.signal
        alone, queued = self.sends[group.rows - done, not done]
        return start + alone if end <= start else max(end + queued, start + alone)

    def of_cut(self, groups: Sequence[Boundary]) -> float:
        end, done = 0.0, 0
        for group in groups:
            end, done = self.then(end, done, group), group.rows
        return end

    def of_the_best_cut(self, ends: Sequence[Boundary]) -> float:
        """Every cut is tried to its end: nothing is dropped."""

        def best(index: int, end: float, done: int) -> float:
            if index == len(ends):
                return end
            return min(
                best(after + 1, self.then(end, done, ends[after]), ends[after].rows)
                for after in range(index, len(ends))
            )

        return best(0, 0.0, 0)


def random_costs(random: Random, kind: str) -> Costs:
    target = random_target(random, device="cuda", resident=random.choice([3, 17, 60]))
    return Costs(random_problem(random, 300, kind), target)


def excess(costs: Costs, ends: tuple[Boundary, ...]) -> float:
    """By how much the found cut is slower than the best of all cuts, as a ratio less 1."""
    model = Recurrence.of(costs, ends)
    return abs(model.of_cut(best_groups(costs, ends)) / model.of_the_best_cut(ends) - 1)


def compared(seed: int, cases: int, most: int, kind: str) -> tuple[float, int]:
    """The worst excess over cuts of the last waves, and the most waves there were."""
    random = Random(seed)
    worst, sizes = 0.0, set()
    for _ in range(cases):
        costs = random_costs(random, kind)
        ends = boundaries(costs)[-random.choice([random.randint(1, most), most]) :]
        sizes.add(len(ends))
        worst = max(worst, excess(costs, ends))
    return worst, max(sizes)


PRODUCERS = [kind for kind in KINDS if kind not in CONSUMERS]


@pytest.mark.parametrize("kind", PRODUCERS)
def test_no_grouping_of_waves_is_faster(kind: str) -> None:
    worst, most = compared(0, 300, 11, kind)
    assert worst < 1e-12
    assert most == 11


@pytest.mark.long
@pytest.mark.parametrize("kind", PRODUCERS)
@pytest.mark.parametrize("seed", range(1, 11))
def test_no_grouping_of_waves_is_faster_at_length(seed: int, kind: str) -> None:
    """With the other kinds and seeds 30,000 cases."""
    worst, most = compared(seed, 1000, 14, kind)
    assert worst < 1e-12
    assert most == 14


class Hasty(signaled._Later):
    """Takes every curve for one that rises, so that the search ends too early."""

    def __init__(self, costs: Costs) -> None:
        super().__init__(costs)
        self.rises = True


class Unhurried(signaled._Later):
    """A group that finds the link busy hides no latency."""

    def __missing__(self, rows: int) -> tuple[float, float]:
        alone, _ = super().__missing__(rows)
        return alone, alone


class Idle(signaled._Later):
    """A group that finds the link idle has no latency."""

    def __missing__(self, rows: int) -> tuple[float, float]:
        _, queued = super().__missing__(rows)
        return queued, queued


@pytest.mark.parametrize("mutant", [Hasty, Unhurried, Idle], ids=lambda mutant: mutant.__name__)
def test_a_wrong_search_is_seen(monkeypatch: pytest.MonkeyPatch, mutant: type) -> None:
    monkeypatch.setattr(signaled, "_Later", mutant)
    worst, _ = compared(1, 2000, 10, "all_reduce")
    assert worst > 1e-3


def difference(costs: Costs, groups: tuple[Boundary, ...]) -> float:
    """Largest relative difference between a timeline's ends and those of the simulation.

    The signal delays a group and not the GEMM: for the link it is as if all waves came so much
    later.
    """
    signal = Fraction(costs.target.signal_seconds)
    released = [Fraction(group.ready) + signal for group in groups]
    rows = [right - left for left, right in pairwise([0, *(group.rows for group in groups)])]
    queued = [costs.queued(count) for count in rows]
    # What starting a call takes is the compute's, and no longer of the transfer.
    alone = [
        max(costs.alone(count) - costs.blocking(count), min(costs.alone(count), later))
        for count, later in zip(rows, queued, strict=True)
    ]
    alone[1:] = [max(pair) for pair in zip(alone[1:], queued[1:], strict=True)]
    work = [released[0], *(right - left for left, right in pairwise(released))]
    computed, sent = simulate(work, alone, queued, 1.0, 1.0)
    expected = [
        end for wave, end in zip(computed, sent, strict=True) for end in (wave - signal, end)
    ]
    ends = [event.end for event in signaled_timeline(costs, groups)]
    return max(abs(mine / float(end) - 1) for mine, end in zip(ends, expected, strict=True))


def worst_difference(seed: int, cases: int, kind: str) -> float:
    """Of random cuts and of the best ones."""
    random = Random(seed)
    worst = 0.0
    for _ in range(cases):
        costs = random_costs(random, kind)
        *inner, last = boundaries(costs)[-40:]
        chosen = tuple(end for end in inner if random.random() < 0.5)
        worst = max(worst, difference(costs, (*chosen, last)))
        worst = max(worst, difference(costs, best_groups(costs, (*inner, last))))
    return worst


@pytest.mark.parametrize("kind", PRODUCERS)
def test_the_timeline_is_that_of_the_simulation(kind: str) -> None:
    assert worst_difference(0, 150, kind) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("kind", PRODUCERS)
@pytest.mark.parametrize("seed", range(1, 6))
def test_the_timeline_is_that_of_the_simulation_at_length(seed: int, kind: str) -> None:
    """With the other kinds and seeds 30,000 cuts."""
    assert worst_difference(seed, 1000, kind) < 1e-9


MUTANTS: dict[str, Callable[..., tuple[float, float]]] = {
    "a queue costs as much as an idle link": lambda R, E, w, a, q, *x: advance(R, E, w, a, a, *x),
    "an idle link costs as little as a queue": lambda R, E, w, a, q, *x: advance(R, E, w, q, q, *x),
    "the transfer waits for no one": lambda R, E, w, a, *x: (R + w, R + w + a),
    "the signal is forgotten": lambda R, E, w, a, q, *x: advance(0.0, E, w, a, q, *x),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_timeline_is_seen(monkeypatch: pytest.MonkeyPatch, mutant: Callable) -> None:
    monkeypatch.setattr(signaled, "advance", mutant)
    assert worst_difference(0, 60, "all_reduce") > 1e-3


def finished_rows(costs: Costs) -> list[tuple[float, int]]:
    """Tiles one by one, in the order of their rows, each by the worker that is free first.

    When each row of tiles is complete, and how many rows of the result are then.
    """
    p, rates = costs.problem, costs.rates
    workers = [(0.0, index) for index in range(max(1, rates.resident))]
    per_row = -(-p.n // rates.tile_columns)
    done: list[tuple[float, int]] = []
    latest = 0.0
    for tile in range(per_row * -(-p.m // rates.tile_rows)):
        free, worker = heappop(workers)
        latest = max(latest, free + 1)
        heappush(workers, (free + 1, worker))
        if (tile + 1) % per_row == 0:
            done.append((latest, min(p.m, (tile + 1) // per_row * rates.tile_rows)))
    return done


@pytest.mark.parametrize("kind", PRODUCERS)
def test_a_group_ends_where_so_many_rows_of_tiles_are_complete(kind: str) -> None:
    """Seconds are counted in tiles: the GEMM is busy for as many waves as the simulation."""
    random = Random(2)
    for _ in range(100):
        costs = random_costs(random, kind)
        launch, granule = costs.rates.launch_seconds, costs.problem.granule
        done = finished_rows(costs)
        waves = done[-1][0]
        wave_seconds = (costs.gemm(costs.problem.m) - launch) / waves
        for end in boundaries(costs):
            wave = round((end.ready - launch) / wave_seconds)
            complete = max(rows for ready, rows in done if ready <= wave)
            assert end.ready == pytest.approx(launch + wave * wave_seconds)
            assert end.rows == complete // granule * granule


@pytest.mark.parametrize("kind", PRODUCERS)
def test_boundaries_are_whole_tile_rows_at_the_ends_of_waves(kind: str) -> None:
    random = Random(1)
    for _ in range(100):
        target = random_target(random, device="cuda", resident=random.choice([3, 17, 132]))
        costs = Costs(random_problem(random, 4000, kind), target)
        ends = boundaries(costs)
        tile, granule = costs.rates.tile_rows, costs.problem.granule
        assert 1 <= len(ends) <= MAX_BOUNDARIES
        assert ends[-1].rows == costs.problem.m
        assert ends[-1].ready == pytest.approx(costs.gemm(costs.problem.m))
        assert all(end.rows % granule == 0 for end in ends)
        if granule == 1:
            assert all(end.rows % tile == 0 for end in ends[:-1])
        assert all(a.rows < b.rows and a.ready < b.ready for a, b in pairwise(ends))


def test_the_collective_takes_its_multiprocessors() -> None:
    """132 tiles are one wave of 132 and two of 116."""
    target = Target.load("h100-nvlink")
    made = plan(
        # 128 x 256 tiles: 33 x 4 of them.
        problem=Costs(random_problem(Random(0), 1), target).problem.__class__(
            33 * 128, 4 * 256, 8192, "bfloat16", "all_reduce", 8
        ),
        target=target,
        schedule="signaled",
    )
    computed = [event for event in made.timeline if event.lane == "compute"]
    assert made.schedule == "signaled"
    assert made.code == "forced"
    rates = target.gemm[0]
    assert computed[-1].end == pytest.approx(rates.launch_seconds + 2 * rates.wave_seconds(8192))


def test_on_a_gpu_auto_leaves_signaled_aside_until_it_is_asked_for() -> None:
    target = Target.load("h200-nvlink")
    sizes = {"n": 8192, "k": 3584, "dtype": "bfloat16", "collective": "all_reduce"}
    from overlapc.planning.problem import Problem

    problem = Problem(m=16384, world_size=8, **sizes)
    assert plan(problem, target).schedule == "chunked"
    assert plan(problem, target, "signaled").schedule == "signaled"
