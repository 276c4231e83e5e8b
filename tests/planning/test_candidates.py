from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from overlapc.planning.candidates import EVEN_GROUPS, best_by_groups, even_plans, top_plans
from overlapc.planning.cost import Costs
from overlapc.planning.cuts import best_cut, quantum
from overlapc.planning.problem import Problem
from overlapc.planning.signaled import signaled_cuts
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, tiles_for
from overlapc.planning.timelines import chunked_timeline
from tests.planning.machines import (
    BY_COLUMNS,
    CUTS,
    KINDS,
    costs_of,
    random_problem,
    random_tables,
    random_target,
)


def compositions(units: int, groups: int) -> list[tuple[int, ...]]:
    """Every way to cut so many units into so many groups."""
    if groups == 1:
        return [(units,)]
    return [
        (first, *rest)
        for first in range(1, units - groups + 2)
        for rest in compositions(units - first, groups - 1)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_cut_into_a_number_of_groups_is_found(kind: str) -> None:
    random = Random(0)
    for _ in range(60):
        costs = random_tables(random, random.randint(2, 9), kind)
        found = {len(rows): rows for rows in best_by_groups(costs, 1, most=5)}
        assert set(found) == set(range(2, min(5, costs.problem.m) + 1))
        for groups, rows in found.items():
            ends = [
                chunked_timeline(costs, cut)[-1].end
                for cut in compositions(costs.problem.m, groups)
            ]
            assert chunked_timeline(costs, rows)[-1].end == pytest.approx(min(ends), rel=1e-12)


@pytest.mark.parametrize("kind", CUTS)
def test_the_top_plans_are_the_best_and_serial(kind: str) -> None:
    random = Random(1)
    cut = 0
    for _ in range(30):
        problem, target = random_problem(random, 2000, kind), random_target(random)
        plans = top_plans(problem, target)
        assert 1 <= len(plans) <= 3
        assert [plan.schedule for plan in plans].count("serial") == 1
        assert len({len(plan.rows) for plan in plans}) == len(plans)
        for before, after in pairwise(plans):
            assert before.predicted_seconds <= after.predicted_seconds
        found = []
        for costs in all_costs(kind, problem, target):
            if best := best_cut(costs, quantum(costs)):
                found.append(chunked_timeline(costs, best)[-1].end)
        if found:
            ends = [plan.predicted_seconds for plan in plans if plan.schedule == "chunked"]
            assert ends[0] == min(found)
            cut += 1
    assert cut > 10


@pytest.mark.parametrize("kind", CUTS)
def test_even_plans_are_of_like_groups(kind: str) -> None:
    random = Random(3)
    cut = whole = 0
    for _ in range(60):
        problem, target = random_problem(random, 2000, kind), random_target(random)
        plans = even_plans(problem, target)
        for costs in all_costs(kind, problem, target) if plans else ():
            unit = quantum(costs)
            found = [plan for plan in plans if plan.by == costs.by]
            units = -(-costs.size // unit)
            assert [len(plan.rows) for plan in found] == [n for n in EVEN_GROUPS if n <= units]
            for plan in found:
                assert sum(plan.rows) == costs.size
                assert max(plan.rows) - min(plan.rows) <= 2 * unit - 1
                assert all(rows % unit == 0 for rows in plan.rows[:-1])
                cut += 1
                whole += len(plan.rows) == units
    assert cut > 20
    assert whole, "a unit each is a cut too"


def all_costs(kind: str, problem: Problem, target: Target) -> list[Costs]:
    kinds = [kind, kind.removesuffix("_by_columns")] if kind in BY_COLUMNS else [kind]
    return [costs_of(each, problem, target) for each in kinds]


def test_what_cannot_be_cut_has_one_plan() -> None:
    random = Random(2)
    target = random_target(random)
    problem = random_problem(random, 2000)
    for trivial in (replace(problem, world_size=1), replace(problem, n=0), replace(problem, m=7)):
        (plan,) = top_plans(trivial, target)
        assert plan.schedule == "serial"
        assert even_plans(trivial, target) == ()
    assert (
        top_plans(replace(problem, m=0), target) == even_plans(replace(problem, m=0), target) == ()
    )


def test_the_best_of_every_kernel_is_one_of_them() -> None:
    target = Target.load("h100-nvlink")
    problem = Problem(8192, 8192, 2048, "bfloat16", "all_reduce", 8, kernel_sums=MOST_SUMS)
    plain = top_plans(replace(problem, kernel_sums=0), target)
    plans = top_plans(problem, target)
    kernels = [made for made in plans if made.tile]
    assert [made.rows for made in plans if not made.tile] == [made.rows for made in plain]
    tiles = {made.tile.configuration for made in kernels if made.tile}
    assert tiles == set(tiles_for("sm_90", "bfloat16"))
    expected = {cut.tile: cut.rows for cut in signaled_cuts(problem, target)}
    assert {made.tile: made.rows for made in kernels} == expected
    assert {made.schedule for made in kernels} == {"signaled"}
    for before, after in pairwise(plans):
        assert before.predicted_seconds <= after.predicted_seconds
    packed = top_plans(replace(problem, takes_map=True), target)
    assert sorted({made.order for made in packed}) == ["", "band", "packed"]
    assert len(packed) == len(plain) + 8
    for other in (replace(target, communication_sms=0), replace(target, architecture="")):
        assert not any(made.tile for made in top_plans(problem, other))
