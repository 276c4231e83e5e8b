"""The bound: no plan of a problem is predicted to beat it, and it is no lower than it has to be."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlapc.planning.candidates import even_plans
from overlapc.planning.column_costs import costs_by
from overlapc.planning.cost import Costs
from overlapc.planning.curve import Curve
from overlapc.planning.problem import COLUMNS, ROWS, Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.schedule import Plan
from overlapc.planning.search import bound, plan, plan_rows
from overlapc.planning.signaled import signaled_cut
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS
from tests.planning.machines import (
    BY_COLUMNS,
    CUTS,
    KERNELS,
    random_kernel,
    random_problem,
    random_target,
)
from tests.planning.test_cost import random_cut

ROUNDING = 1e-8
"""Seconds: each time of a curve is rounded to 1e-10, and a share of pointwise bytes to a byte."""


def wide_problem(random: Random, rows: int, kind: str) -> Problem:
    """With so much to send that points of `random_curve` lie below it."""
    problem = random_problem(random, rows, kind)
    if kind in BY_COLUMNS:
        return replace(problem, m=40 * problem.m)
    return replace(problem, n=40 * problem.n, k=40 * problem.k)


def plans_of(random: Random, kind: str) -> list[Plan]:
    """The chosen plan of a random problem on a random target, even cuts, and one of no reason."""
    target = random_target(random)
    if random.random() < 0.2:  # overlap loses
        target = replace(target, compute_slowdown=2.5, link_slowdown=2.5)
    problem = wide_problem(random, 200, kind)
    by = COLUMNS if kind in BY_COLUMNS else ROWS
    costs = costs_by(by, problem, target)
    units = random_cut(random, costs.size // costs.granule)
    rows = [costs.granule * count for count in units]
    return [
        plan(problem, target),
        plan(problem, target, "chunked"),
        *even_plans(problem, target),
        plan_rows(problem, target, rows, by=by),
    ]


def furthest_below(seed: int, kind: str) -> float:
    """Seconds by which the quickest plan beats its bound; below zero where none does."""
    plans = plans_of(Random(seed), kind)
    return max(made.bound_seconds - made.predicted_seconds for made in plans)


@pytest.mark.parametrize("kind", CUTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 40))
def test_no_plan_beats_the_bound(kind: str, seed: int) -> None:
    assert furthest_below(seed, kind) < ROUNDING


@pytest.mark.parametrize("kind", KERNELS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 40))
def test_no_groups_of_a_kernel_beat_its_bound(kind: str, seed: int) -> None:
    random = Random(seed)
    costs = random_kernel(random, kind)
    units = -(-costs.size // costs.unit)
    ends = sorted(random.sample(range(1, units), random.randint(0, min(8, units - 1))))
    ends = [costs.unit * end for end in ends] + [costs.size]
    rows = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert signaled_cut(costs, rows).seconds > costs.bound() - ROUNDING


def whole(self: Costs) -> float:
    return self.alone(self.size)


def rate_of_all(self: Curve, size: float) -> float:
    return self.seconds(size) / size


def all_at_first(self: Curve, rate: float, size: float) -> float:
    return self.seconds(size) - rate * size


MUTANTS = {
    "all is sent by one call": (Costs, "least_sent", whole),
    "no part is quicker than all": (Curve, "least_rate", rate_of_all),
    "all goes by the first call": (Curve, "least_beyond", all_at_first),
}


def most_below_cuts(seed: int, kind: str) -> float:
    """Seconds by which a cut of a random problem keeps the link busy less than it should at least.

    The quickest of all cuts into multiples of the granule, one group after another.
    """
    random = Random(seed)
    problem, target = wide_problem(random, 60, kind), random_target(random)
    costs = costs_by(COLUMNS if kind in BY_COLUMNS else ROWS, problem, target)
    ends = range(costs.granule, costs.size + 1, costs.granule)

    def sent(rows: int, *, is_first: bool) -> float:
        if problem.is_consumer:
            return costs.alone(rows) if is_first else costs.queued(rows)
        return costs.sent(rows, is_first=is_first)[0 if is_first else 1]

    least: dict[int, float] = {}
    for end in ends:
        more = (least[start] + sent(end - start, is_first=False) for start in least)
        least[end] = min(sent(end, is_first=True), *more, sent(end, is_first=True))
    return costs.least_sent() - least[costs.size]


@pytest.mark.parametrize("kind", CUTS)
def test_no_cut_keeps_the_link_busy_for_less(kind: str) -> None:
    assert max(most_below_cuts(seed, kind) for seed in range(30)) < ROUNDING


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_least_time_that_cuts_beat_is_seen(
    monkeypatch: pytest.MonkeyPatch, mutant: tuple[type, str, object]
) -> None:
    monkeypatch.setattr(*mutant)
    assert max(most_below_cuts(seed, "all_gather") for seed in range(60)) > 1e-5


def test_a_bound_of_one_call_is_beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Costs, "least_sent", whole)
    assert max(furthest_below(seed, "all_gather") for seed in range(60)) > 1e-5


def straight(latency: float, bandwidth: float) -> Curve:
    return Curve(tuple((1 << bit, latency + (1 << bit) / bandwidth) for bit in range(10, 24)))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("queued", [1e-3, 1e-5])
def test_where_one_call_takes_least_it_is_what_the_bound_has(queued: float, size: int) -> None:
    """Latency and bandwidth: no number of calls is quicker than one."""
    link = Link("all_gather", 2, straight(1e-3, 1e9), straight(queued, 1e9))
    for m in (6, 60, 6000):
        problem = Problem(m, 64, 64, "float32", "all_gather", size)
        costs = Costs(problem, target_of(link))
        # Between measured points a line in logarithms is 1.5 % above a straight one.
        assert costs.least_sent() == pytest.approx(costs.alone(m), rel=0.015)
        assert costs.bound() == pytest.approx(max(costs.alone(m), costs.gemm(m)), rel=0.015)


def test_gathers_that_are_quicker_in_a_train_have_a_lower_bound() -> None:
    """A plan that computes its local rows meanwhile takes little more than the link: less than one
    call, which the bound was made of."""
    link = Link("all_gather", 2, straight(1e-3, 0.9e9), straight(1e-4, 1e9))
    problem, target = Problem(32768, 256, 1024, "float32", "all_gather", 2), target_of(link)
    made = plan(problem, target)
    assert made.has_local
    assert made.predicted_seconds < Costs(problem, target).alone(problem.m)
    assert 0.9 * made.predicted_seconds < made.bound_seconds <= made.predicted_seconds


def target_of(link: Link) -> Target:
    rates = GemmRates("float32", 1e12, 1e-6)
    return Target("m", "cpu", "gloo", True, (rates,), (link,), 1.0, 1.0)


def test_the_bound_is_that_of_the_problem_and_not_of_a_plan() -> None:
    """A generated kernel, which a collective does not slow down, counts for plans without one."""
    target = replace(Target.load("h100-nvlink"), compute_slowdown=3.0, link_slowdown=1.4)
    problem = Problem(16384, 8192, 4096, "bfloat16", "all_reduce", 8, kernel_sums=MOST_SUMS)
    signaled, serial = (plan(problem, target, name) for name in ("signaled", "serial"))
    assert signaled.bound_seconds == serial.bound_seconds == bound(problem, target)
    assert bound(problem, target) <= signaled.predicted_seconds < Costs(problem, target).bound()
