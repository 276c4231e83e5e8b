from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest

from overlapc.planning import cost, timelines
from overlapc.planning.column_costs import ColumnCosts
from overlapc.planning.cost import Costs
from overlapc.planning.curve import Curve
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import LANES, LOCAL, Event
from overlapc.planning.target import Target
from overlapc.planning.timelines import chunked_timeline, serial_timeline
from tests.planning.machines import (
    BY_COLUMNS,
    CONSUMERS,
    CUTS,
    KINDS,
    costs_of,
    random_problem,
    random_tables,
    random_target,
)
from tests.planning.simulation import simulate, simulate_consumer


def random_cut(random: Random, rows: int) -> list[int]:
    inner = range(1, rows)
    cuts = sorted(random.sample(inner, random.randint(0, min(11, len(inner)))))
    return [right - left for left, right in zip([0, *cuts], [*cuts, rows], strict=True)]


def differences(costs: Costs, rows: Sequence[int], timeline: Sequence[Event]) -> float:
    """Largest relative difference between the ends of a timeline and those of the simulation."""
    later = not costs.problem.is_consumer
    work = [costs.compute(n, beside=later and index > 0) for index, n in enumerate(rows)]
    queued = [costs.queued(count) for count in rows]
    slowdowns = costs.target.compute_slowdown, costs.target.link_slowdown
    expected: list[Fraction] = []
    if costs.problem.is_consumer:
        sent = [costs.alone(rows[0]), *queued[1:]]
        local, come, computed = simulate_consumer(costs.backlog, sent, work, *slowdowns)
        expected = [local] if costs.backlog else []
        pairs = zip(come, computed, strict=True)
    else:
        # What starting a call takes is part of the work, and no longer of the transfer.
        alone = [
            max(costs.alone(count) - costs.blocking(count), min(costs.alone(count), later))
            for count, later in zip(rows, queued, strict=True)
        ]
        alone[1:] = [max(pair) for pair in zip(alone[1:], queued[1:], strict=True)]
        pairs = zip(*simulate(work, alone, queued, *slowdowns), strict=True)
    expected += [end for pair in pairs for end in pair]
    assert len(timeline) == len(expected)
    ends = [event.end for event in timeline]
    return max(abs(mine / float(end) - 1) for mine, end in zip(ends, expected, strict=True))


def worst_difference(seed: int, cases: int, kind: str) -> float:
    random = Random(seed)
    worst = 0.0
    for _ in range(cases):
        problem = random_problem(random, 200, kind)
        costs = costs_of(kind, problem, random_target(random))
        rows = random_cut(random, costs.size)
        worst = max(worst, differences(costs, rows, chunked_timeline(costs, rows)))
        tables = random_tables(random, 12, kind)
        rows = random_cut(random, 12)
        worst = max(worst, differences(tables, rows, chunked_timeline(tables, rows)))
    return worst


@pytest.mark.parametrize("kind", CUTS)
def test_the_timeline_is_that_of_the_simulation(kind: str) -> None:
    assert worst_difference(0, 100, kind) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("seed", range(1, 6))
def test_the_timeline_is_that_of_the_simulation_at_length(seed: int, kind: str) -> None:
    assert worst_difference(seed, 1000, kind) < 1e-9


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


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather"])
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_wrong_recurrence_is_seen(
    monkeypatch: pytest.MonkeyPatch, mutant: object, kind: str
) -> None:
    if kind in CONSUMERS and mutant in QUEUE_MUTANTS:
        pytest.skip("computing costs the same after a GEMM as after a pause")
    monkeypatch.setattr(timelines, "advance", mutant)
    assert worst_difference(0, 40, kind) > 1e-3


QUEUE_MUTANTS = [mutant for name, mutant in MUTANTS.items() if "queue" in name]


def test_without_contention_it_is_the_classic_recurrence() -> None:
    random = Random(7)
    ready = end = classic = 0.0
    for _ in range(1000):
        work, transfer = random.random(), random.random()
        ready, end = cost.advance(ready, end, work, transfer, transfer, 1.0, 1.0)
        classic = max(classic, ready) + transfer
        assert end == pytest.approx(classic, rel=1e-12)


@pytest.mark.parametrize("kind", CUTS)
def test_events_of_a_lane_do_not_overlap_and_follow_their_group(kind: str) -> None:
    random = Random(3)
    for _ in range(100):
        problem = random_problem(random, 300, kind)
        costs = costs_of(kind, problem, random_target(random))
        timeline = chunked_timeline(costs, random_cut(random, costs.size))
        lanes = [
            [event for event in timeline if event.lane == lane and event.group != LOCAL]
            for lane in LANES
        ]
        first, second = reversed(lanes) if problem.is_consumer else lanes
        slack = timeline[-1].end * 1e-12
        for earlier, later in zip(first, second, strict=True):
            assert earlier.group == later.group
            assert earlier.end <= later.start + slack
        local = [event for event in timeline if event.group == LOCAL]
        assert len(local) == (problem.local_rows(problem.m) > 0)
        for lane in (first, local + second):
            for before, after in pairwise(lane):
                assert before.start < before.end <= after.start + slack


@pytest.mark.parametrize("kind", KINDS)
def test_serial_and_bound(kind: str) -> None:
    random = Random(4)
    for _ in range(150):
        costs = Costs(random_problem(random, 300, kind), random_target(random))
        target, m = costs.target, costs.problem.m
        compute, sent = costs.gemm(m), costs.alone(m)
        done = sent if costs.problem.is_consumer else compute
        assert [event.end for event in serial_timeline(costs)] == [done, compute + sent]
        # Both start together, as two groups of which one needs no compute and one no link.
        least = costs.least_sent()
        computed, ends = simulate(
            [0.0, compute],
            [least, 0.0],
            [least, 0.0],
            target.compute_slowdown,
            target.link_slowdown,
        )
        assert least <= sent + 1e-9
        assert costs.bound() == pytest.approx(float(max(computed[-1], ends[0])), rel=1e-9)
        assert max(compute, least) <= costs.bound() + 1e-9
        assert costs.bound() <= costs.serial() * (1 + 1e-12)


def test_the_bound_is_never_above_serial_even_where_overlap_loses() -> None:
    random = Random(5)
    for _ in range(100):
        slow = replace(random_target(random), compute_slowdown=3.0, link_slowdown=2.5)
        costs = Costs(random_problem(random, 300), slow)
        assert costs.bound() <= costs.serial()


def test_pointwise_work_costs_time_in_both_schedules() -> None:
    random = Random(6)
    for kind in KINDS:
        problem = replace(random_problem(random, 300, kind), m=360, row_multiple=60)
        problem = replace(problem, epilogue_bytes=0)
        target = unhindered(random_target(random))
        rates = replace(target.gemm[0], pointwise_bytes_per_second=1e6)
        target = replace(target, gemm=(rates,))
        extra = replace(problem, epilogue_bytes=problem.m * 1000)
        without, costs = Costs(problem, target), Costs(extra, target)
        seconds = problem.m * 1000 / 1e6
        assert costs.serial() - without.serial() == pytest.approx(seconds)
        computed = [
            sum(
                event.end - event.start
                for event in chunked_timeline(each, (120, 180, 60))
                if event.lane == "compute"
            )
            for each in (costs, without)
        ]
        assert computed[0] - computed[1] == pytest.approx(seconds)


def unhindered(target: Target) -> Target:
    return replace(target, compute_slowdown=1.0, link_slowdown=1.0)


def test_starting_a_call_takes_what_was_measured_for_its_bytes() -> None:
    random = Random(8)
    for kind in KINDS:
        costs = Costs(random_problem(random, 300, kind), random_target(random))
        link = costs.link
        assert link is not None
        constant = link.consumer_issue_seconds if costs.problem.is_consumer else link.issue_seconds
        growing = Curve(((1, 1e-3), (10, 1e-2), (1 << 30, 1e-2 * (1 << 30) / 10)))
        for issue in (None, growing):
            link = replace(link, world_size=costs.problem.world_size, issue=issue)
            mine = Costs(costs.problem, replace(costs.target, links=(link,)))
            size = costs.problem.sent_bytes(6)
            expected = constant + (growing.seconds(size) if issue else 0.0)
            assert mine.issue(6) == pytest.approx(expected)
            computed = 6 - costs.problem.local_rows(6)
            assert mine.compute(6) == pytest.approx(mine.gemm(computed) + expected)


def test_later_groups_have_whole_waves_of_what_the_collective_leaves() -> None:
    """512 tiles on 128 multiprocessors, of which it takes 2, as FlashOverlap publishes them; by
    `advance` they take the slowdown as well, as long as there is a collective.

    Mutants: the first group too; waves are not divided by the slowdown; no waves are added.
    """
    target = Target.load("rtx4090-pcie")
    rates = target.rates_of("bfloat16")
    assert rates is not None
    c = target.compute_slowdown
    problem = Problem(3 * 4096, 2048, 4096, "bfloat16", "all_reduce", 4)
    for costs, size in ((Costs(problem, target), 4096), (ColumnCosts(problem, target), 512)):
        (first, *_), (later, *_) = (costs.step(size, is_first=its) for its in (True, False))
        tiles = rates.tiles(size, 2048) if costs.by == "rows" else rates.tiles(problem.m, size)
        whole, fewer = -(-tiles // 128), -(-tiles // 126)
        assert fewer > whole
        more = (fewer / c - whole) * rates.wave_seconds(problem.k)
        assert later - first == pytest.approx(more)
        alone = replace(target, communication_sms=0)
        assert type(costs)(problem, alone).step(size, is_first=False)[0] == first
    assert (rates.waves(4096, 2048), rates.waves(4096, 2048, taken=2)) == (4, 5)
    consumer = Costs(replace(problem, collective="all_gather"), target)
    assert consumer.step(4096, is_first=True)[1] == consumer.step(4096, is_first=False)[1]


@pytest.mark.parametrize("kind", BY_COLUMNS)
def test_a_group_of_columns_costs_its_part_of_the_weight_and_a_pass(kind: str) -> None:
    random = Random(9)
    for _ in range(100):
        problem = random_problem(random, 300, kind)
        costs = ColumnCosts(problem, random_target(random))
        assert costs.link is not None
        p, columns = problem, random.randint(1, problem.n)
        rates = costs.target.gemm[0]
        computed = rates.seconds(p.m, columns, p.k, 4, p.epilogue_bytes * columns // p.n)
        size = p.m * columns * (2 if p.sent_dtype else 4)
        come = size if p.collective != "reduce_scatter" else size // p.m * (p.m // p.world_size)
        assert costs.gemm(columns) == computed
        assert costs.alone(columns) == costs.link.scaled(costs.link.alone, size, p.world_size)
        placed = rates.pointwise_seconds(2 * come)
        expected = computed + placed + costs.issue(columns)
        assert costs.compute(columns) == pytest.approx(expected, rel=1e-12)
        by_rows = Costs(problem, costs.target)
        assert (costs.serial(), costs.bound()) == (by_rows.serial(), by_rows.bound())
