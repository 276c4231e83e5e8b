from __future__ import annotations

from itertools import combinations, pairwise
from random import Random

import pytest

from overlapc.planning.cost import Costs
from overlapc.planning.search import plan
from overlapc.planning.signaled import MAX_BOUNDARIES, Boundary, best_groups, boundaries
from overlapc.planning.target import Target
from tests.planning.machines import CONSUMERS, KINDS, random_problem, random_target


def end_of(costs: Costs, groups: tuple[Boundary, ...]) -> float:
    """The recurrence, written out."""
    end, rows = 0.0, 0
    for group in groups:
        start, count = group.ready + costs.target.signal_seconds, group.rows - rows
        alone, _ = costs.sent(count, is_first=not rows)
        end = start + alone if end <= start else max(end + costs.queued(count), start + alone)
        rows = group.rows
    return end


def most_waves_of_cuts_that_are_best(seed: int, cases: int, most: int, kind: str) -> int:
    """Compare with every grouping of the last ``most`` waves; how many there were at most."""
    random = Random(seed)
    sizes = set()
    for _ in range(cases):
        target = random_target(random, device="cuda", resident=random.choice([3, 17, 60]))
        costs = Costs(random_problem(random, 300, kind), target)
        ends = boundaries(costs)[-random.randint(1, most) :]
        sizes.add(len(ends))
        best = min(
            end_of(costs, (*chosen, ends[-1]))
            for count in range(len(ends))
            for chosen in combinations(ends[:-1], count)
        )
        assert end_of(costs, best_groups(costs, ends)) == pytest.approx(best, rel=1e-12)
    return max(sizes)


PRODUCERS = [kind for kind in KINDS if kind not in CONSUMERS]


@pytest.mark.parametrize("kind", PRODUCERS)
def test_no_grouping_of_waves_is_faster(kind: str) -> None:
    assert most_waves_of_cuts_that_are_best(0, 250, 11, kind) == 11


@pytest.mark.long
@pytest.mark.parametrize("kind", PRODUCERS)
@pytest.mark.parametrize("seed", range(1, 8))
def test_no_grouping_of_waves_is_faster_at_length(seed: int, kind: str) -> None:
    assert most_waves_of_cuts_that_are_best(seed, 150, 14, kind) == 14


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
