from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest

from overlapc.planning import cost
from overlapc.planning.cost import Costs, chunked_timeline, serial_timeline
from overlapc.planning.schedule import Event
from tests.planning.machines import random_problem, random_tables, random_target
from tests.planning.simulation import simulate


def random_cut(random: Random, rows: int) -> list[int]:
    inner = range(1, rows)
    cuts = sorted(random.sample(inner, random.randint(0, min(11, len(inner)))))
    return [right - left for left, right in zip([0, *cuts], [*cuts, rows], strict=True)]


def differences(costs: Costs, rows: Sequence[int], timeline: Sequence[Event]) -> float:
    """Largest relative difference between the ends of a timeline and those of the simulation."""
    work = [costs.gemm(count) + costs.issue() for count in rows]
    queued = [costs.queued(count) for count in rows]
    alone = [max(costs.alone(count), costs.queued(count)) for count in rows]
    alone[0] = costs.alone(rows[0])
    target = costs.target
    computed, sent = simulate(work, alone, queued, target.compute_slowdown, target.link_slowdown)
    ends = [event.end for event in timeline]
    assert len(ends) == 2 * len(rows)
    pairs = zip(
        ends, (end for both in zip(computed, sent, strict=True) for end in both), strict=True
    )
    return max(abs(mine / float(exact) - 1) for mine, exact in pairs)


def worst_difference(seed: int, cases: int) -> float:
    random = Random(seed)
    worst = 0.0
    for _ in range(cases):
        problem = random_problem(random, 200)
        costs = Costs(problem, random_target(random))
        rows = random_cut(random, problem.m)
        worst = max(worst, differences(costs, rows, chunked_timeline(costs, rows)))
        tables = random_tables(random, 12)
        rows = random_cut(random, 12)
        worst = max(worst, differences(tables, rows, chunked_timeline(tables, rows)))
    return worst


@pytest.mark.parametrize("seed", range(3))
def test_the_timeline_is_that_of_the_simulation(seed: int) -> None:
    assert worst_difference(seed, 300) < 1e-9


cost_advance = cost.advance
MUTANTS = {
    "compute is not slowed": lambda R, E, w, a, q, c, d: cost_advance(R, E, w, a, q, 1.0, d),
    "the link is not slowed": lambda R, E, w, a, q, c, d: cost_advance(R, E, w, a, q, c, 1.0),
    "slowed beside an idle link": lambda R, E, w, a, q, c, d: cost_advance(
        R, E, w * c, a, q, 1.0, 1.0
    ),
    "a queue costs as much as an idle link": lambda R, E, w, a, q, c, d: cost_advance(
        R, E, w, a, a, c, d
    ),
    "an idle link costs as little as a queue": lambda R, E, w, a, q, c, d: cost_advance(
        R, E, w, q, q, c, d
    ),
    "the transfer waits for no one": lambda R, E, w, a, q, c, d: (R + w, R + w + a),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_wrong_recurrence_is_seen(monkeypatch: pytest.MonkeyPatch, mutant: object) -> None:
    monkeypatch.setattr(cost, "advance", mutant)
    assert worst_difference(0, 100) > 1e-3


def test_without_contention_it_is_the_classic_recurrence() -> None:
    random = Random(7)
    ready = end = classic = 0.0
    for _ in range(1000):
        work, transfer = random.random(), random.random()
        ready, end = cost.advance(ready, end, work, transfer, transfer, 1.0, 1.0)
        classic = max(classic, ready) + transfer
        assert end == pytest.approx(classic, rel=1e-12)


def test_events_of_a_lane_do_not_overlap_and_follow_their_group() -> None:
    random = Random(3)
    for _ in range(200):
        problem = random_problem(random, 300)
        costs = Costs(problem, random_target(random))
        timeline = chunked_timeline(costs, random_cut(random, problem.m))
        computed = [event for event in timeline if event.lane == "compute"]
        sent = [event for event in timeline if event.lane == "communication"]
        slack = timeline[-1].end * 1e-12
        for compute, transfer in zip(computed, sent, strict=True):
            assert compute.group == transfer.group
            assert compute.end <= transfer.start + slack
        for lane in (computed, sent):
            for before, after in pairwise(lane):
                assert before.start < before.end <= after.start + slack


def test_serial_and_bound() -> None:
    random = Random(4)
    for _ in range(300):
        costs = Costs(random_problem(random, 300), random_target(random))
        compute, sent = costs.gemm(costs.problem.m), costs.alone(costs.problem.m)
        assert [event.end for event in serial_timeline(costs)] == [compute, compute + sent]
        # Both start together, as two groups of which one needs no compute and one no link.
        target = costs.target
        computed, ends = simulate(
            [0.0, compute], [sent, 0.0], [sent, 0.0], target.compute_slowdown, target.link_slowdown
        )
        assert costs.bound() == pytest.approx(float(max(computed[-1], ends[0])), rel=1e-9)
        assert max(compute, sent) <= costs.bound() <= costs.serial() * (1 + 1e-12)
