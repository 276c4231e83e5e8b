from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from math import inf
from random import Random

import pytest
import torch

import overlapc
from overlapc.errors import OptionError, PlanError, ProblemError
from overlapc.planning import plan as plan_sizes
from overlapc.planning.column_costs import ColumnCosts
from overlapc.planning.cost import Costs
from overlapc.planning.curve import Curve
from overlapc.planning.cuts import best_cut, quantum
from overlapc.planning.problem import COLLECTIVES, Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.schedule import LOCAL, Plan, format_seconds
from overlapc.planning.search import MEASURED_MARGIN, UNMEASURED_MARGIN, plan, plan_rows
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS
from overlapc.planning.timelines import chunked_timeline
from overlapc.planning.tuned import TunedPlan
from tests.planning.machines import BY_COLUMNS, KINDS, random_problem, random_target
from tests.planning.test_cuts import best_of_all


def machine(bandwidth: float, latency: float = 1e-4, c: float = 1.0, d: float = 1.0) -> Target:
    """A core of 100 GFLOP/s and a link."""
    curve = Curve(tuple((1 << bit, latency + (1 << bit) / bandwidth) for bit in range(8, 28)))
    rates = GemmRates("float32", 1e11, 1e-5, pack_bytes_per_second=1e10)
    links = tuple(Link(collective, 2, curve, curve) for collective in COLLECTIVES)
    return Target("m", "cpu", "gloo", True, (rates,), links, c, d)


PROBLEM = Problem(1024, 1024, 1024, "float32", "all_reduce", 2)
GATHER = replace(PROBLEM, collective="all_gather")


@pytest.mark.parametrize("kind", KINDS)
def test_a_balanced_problem_is_cut(kind: str) -> None:
    collective, order = KINDS[kind]
    made = plan(replace(PROBLEM, collective=collective, order=order), machine(2e8))
    assert (made.schedule, made.code) == ("chunked", "chunked_overlaps")
    assert len(made.rows) > 1
    assert made.bound_seconds < made.predicted_seconds < 0.8 * made.serial_seconds
    assert f"{made.speedup:.2f} times as fast" in made.reason


@pytest.mark.parametrize(
    ("problem", "target", "code", "says"),
    [
        (replace(PROBLEM, world_size=1), machine(2e8), "serial_one_rank", "one member"),
        (replace(PROBLEM, m=0), machine(2e8), "serial_empty", "zero"),
        (replace(PROBLEM, n=0), machine(2e8), "serial_empty", "zero"),
        (replace(PROBLEM, k=0), machine(2e8), "serial_empty", "zero"),
        (replace(PROBLEM, m=16), machine(2e8), "serial_too_small", "one unit of 16"),
        (PROBLEM, machine(1e13, 1e-6), "serial_nothing_to_hide", "Communication takes only"),
        (PROBLEM, machine(1e6), "serial_nothing_to_hide", "Compute takes only"),
        (replace(PROBLEM, m=64), machine(2e8, 1e-1), "serial_nothing_to_hide", "Compute takes"),
        (PROBLEM, machine(1e12, 2e-2), "serial_no_gain", "would lose"),
        (PROBLEM, machine(2e8, c=2.0, d=2.0), "serial_contention", "2.00 times slower"),
        (replace(GATHER, world_size=1), machine(2e8), "serial_one_rank", "one member"),
        (replace(GATHER, m=0), machine(2e8), "serial_empty", "zero"),
        (replace(GATHER, m=16), machine(2e8), "serial_too_small", "one unit of 16"),
        (GATHER, machine(1e13, 1e-6), "serial_nothing_to_hide", "Communication takes only"),
        (GATHER, machine(1e6), "serial_nothing_to_hide", "Compute takes only"),
        (GATHER, machine(1e12, 1e-1), "serial_no_gain", "would lose"),
        (GATHER, machine(2e8, c=2.0, d=2.0), "serial_contention", "2.00 times slower"),
    ],
)
def test_serial_wins_and_says_why(problem: Problem, target: Target, code: str, says: str) -> None:
    made = plan(problem, target)
    assert (made.schedule, made.code, made.rows) == ("serial", code, (problem.m,))
    assert made.predicted_seconds == made.serial_seconds
    assert says in made.reason


def test_a_gain_below_the_margin_is_left() -> None:
    """Sweep the bandwidth across the margin: the decision changes exactly where the gain does."""
    decisions = set()
    for step in range(60):
        target = machine(2e8 * 1.1**step)
        for known in (True, False):
            margin = MEASURED_MARGIN if known else UNMEASURED_MARGIN
            here = replace(target, is_measured=known)
            costs = Costs(PROBLEM, here)
            best = chunked_timeline(costs, best_cut(costs, quantum(costs)))[-1].end
            cut = plan(PROBLEM, here).schedule == "chunked"
            assert cut == (best <= (1 - margin) * costs.serial())
            decisions.add((known, cut))
    assert len(decisions) == 4


def test_a_plan_is_never_predicted_slower_than_serial_nor_faster_than_its_timeline() -> None:
    random = Random(0)
    for kind in [*KINDS] * 60:
        made = plan(random_problem(random, 2000, kind), random_target(random))
        assert made.predicted_seconds <= made.serial_seconds
        assert made.bound_seconds <= made.serial_seconds
        assert made.predicted_seconds == max(event.end for event in made.timeline)
        assert sum(made.rows) == made.problem.m
        assert all(rows % made.problem.granule == 0 for rows in made.rows)
        local = sum(event.group == LOCAL for event in made.timeline)
        assert len(made.timeline) == 2 * len(made.rows) + local


def test_what_a_reason_says_stays_visible_is_what_compute_waits_for() -> None:
    """By the timeline itself: the time in which nothing is computed."""
    for problem in (PROBLEM, GATHER):
        made = plan(problem, machine(2e8))
        computed = sorted((e.start, e.end) for e in made.timeline if e.lane == "compute")
        idle, until = 0.0, 0.0
        for start, end in [*computed, (made.predicted_seconds, made.predicted_seconds)]:
            idle += max(0.0, start - until)
            until = max(until, end)
        assert f"{format_seconds(idle)} of communication stay visible" in made.reason


def test_what_was_measured_best_is_taken() -> None:
    target = machine(2e8)
    for problem, rows in ((PROBLEM, (512, 512)), (GATHER, (1000, 24)), (GATHER, (1024,))):
        tuned = TunedPlan(problem.resolved(), rows, 1.25e-2)
        knowing = replace(target, tuned=(tuned,))
        assert knowing.fingerprint != target.fingerprint
        explicit = replace(problem, sent_dtype="float32", row_multiple=problem.granule)
        for same in (problem, problem.resolved(), explicit):
            made = plan(same, knowing)
            schedule = "serial" if len(rows) == 1 else "chunked"
            assert (made.rows, made.schedule, made.code) == (rows, schedule, "measured_best")
            assert "12.5 ms" in made.reason
        # Of those sizes, and only where the choice is free.
        assert plan(replace(problem, m=1026), knowing).code == "chunked_overlaps"
        beside = plan(replace(problem, epilogue_bytes=8), knowing)
        assert (beside.rows, beside.code) == (rows, "measured_alike")
        assert plan(problem, knowing, "chunked").code == "forced"
        assert plan(problem, knowing, "serial").code == "forced"


def test_a_schedule_can_be_asked_for() -> None:
    fast = machine(1e13, 1e-6)
    assert plan(PROBLEM, fast, "chunked").code == "forced"
    assert len(plan(PROBLEM, fast, "chunked").rows) > 1
    assert plan(PROBLEM, machine(2e8), "serial").rows == (1024,)
    assert plan(PROBLEM, machine(2e8), "signaled").code == "serial_no_signals"
    assert plan(GATHER, machine(2e8), "signaled").code == "serial_consumer"
    assert plan(replace(PROBLEM, m=7), fast, "chunked").code == "serial_too_small"
    with pytest.raises(OptionError, match=r"magic.*choose auto, serial"):
        plan(PROBLEM, fast, "magic")


def test_rows_can_be_given() -> None:
    made = plan_rows(PROBLEM, machine(2e8), (1000, 24))
    assert (made.schedule, made.rows, made.code) == ("chunked", (1000, 24), "given")
    assert plan_rows(PROBLEM, machine(2e8), (1024,)).schedule == "serial"
    for rows in ((), (1000,), (1024, 0), (1100, -76)):
        with pytest.raises(PlanError, match="do not cut 1024 rows"):
            plan_rows(PROBLEM, machine(2e8), rows)
    assert plan_rows(GATHER, machine(2e8), (1000, 24)).schedule == "chunked"
    with pytest.raises(PlanError, match="multiples of 2 "):
        plan_rows(GATHER, machine(2e8), (1001, 23))


COLUMNS = replace(PROBLEM, cuts_columns=True)


def test_columns_are_cut_where_the_weight_takes_long_to_pack() -> None:
    target = machine(2e8)
    wide = replace(COLUMNS, m=256, n=4096)
    for collective in ("all_reduce", "reduce_scatter", "all_to_all"):
        problem = replace(wide, collective=collective)
        rows, made = plan(replace(problem, cuts_columns=False), target), plan(problem, target)
        assert (rows.by, made.by, made.schedule) == ("rows", "columns", "chunked")
        assert sum(made.rows) == 4096
        assert made.predicted_seconds < rows.predicted_seconds
        assert made.serial_seconds == rows.serial_seconds
        assert f"{len(made.rows)} groups of columns" in made.reason
    # Few rows are one unit; their columns are many.
    few = plan(replace(COLUMNS, m=8, n=65536), target)
    assert (few.schedule, few.by) == ("chunked", "columns")
    assert plan(replace(COLUMNS, m=8, n=64), target).code == "serial_too_small"


def test_rows_win_ties() -> None:
    target = machine(2e8)
    free = replace(target.gemm[0], pack_bytes_per_second=None, launch_seconds=0.0)
    free = replace(free, tile_rows=64, tile_columns=64)
    made = plan(COLUMNS, replace(target, gemm=(free,)))
    assert (made.schedule, made.by) == ("chunked", "rows")
    costs = ColumnCosts(COLUMNS, replace(target, gemm=(free,)))
    by_columns = chunked_timeline(costs, best_cut(costs, quantum(costs)))[-1].end
    assert by_columns == pytest.approx(made.predicted_seconds, rel=1e-9)  # else there is no tie


def test_the_better_of_both_cuts_is_planned() -> None:
    random, taken = Random(1), set()
    for kind in [*BY_COLUMNS] * 60:
        problem = replace(random_problem(random, 2000, kind), m=60 * random.randint(1, 20))
        target = random_target(random)
        made = plan(problem, target, "chunked", max_units=10)
        ends = []
        for costs in (Costs(problem, target), ColumnCosts(problem, target)):
            unit = quantum(costs, 10)
            ends.append(best_of_all(costs, unit) if costs.size > unit else inf)
        if made.code == "serial_too_small":
            assert ends == [inf, inf]
            continue
        assert made.predicted_seconds == pytest.approx(min(ends), rel=2e-6)
        assert made.by == ("columns" if ends[1] < (1 - 1e-5) * ends[0] else made.by)
        assert made.by == ("rows" if ends[0] < ends[1] else made.by)
        taken.add(made.by)
        automatic = plan(problem, target)
        assert automatic.predicted_seconds <= automatic.serial_seconds
        assert Plan.from_json(automatic.to_json()) == automatic
    assert taken == {"rows", "columns"}


def test_columns_can_be_given_and_tuned() -> None:
    target = machine(2e8)
    made = plan_rows(COLUMNS, target, (1000, 24), by="columns")
    assert (made.schedule, made.rows, made.by) == ("chunked", (1000, 24), "columns")
    assert plan_rows(COLUMNS, target, (1024,), by="columns").schedule == "serial"
    for problem in (PROBLEM, replace(GATHER, cuts_columns=True)):
        with pytest.raises(PlanError, match=r"do not cut 1024 columns.* of rows$"):
            plan_rows(problem, target, (1000, 24), by="columns")
    tuned = TunedPlan(COLUMNS.resolved(), (1000, 24), 1.25e-2, by="columns")
    known = plan(COLUMNS, replace(target, tuned=(tuned,)))
    assert (known.rows, known.by, known.code) == ((1000, 24), "columns", "measured_best")
    with pytest.raises(ValueError, match="do not cut"):
        TunedPlan(PROBLEM.resolved(), (1000, 24), 1.25e-2, by="columns")


def test_sizes_can_be_given_by_name(tmp_path) -> None:
    target = machine(2e8)
    target.save(tmp_path / "m.json")
    sizes = {"m": 1024, "n": 1024, "k": 1024, "world_size": 2, "dtype": "float32"}
    expected = plan(replace(PROBLEM, cuts_columns=True, kernel_sums=MOST_SUMS), target)
    assert overlapc.plan(**sizes, collective="all_reduce", target=target) == expected
    assert plan_sizes(**sizes, target=tmp_path / "m.json") == expected
    with pytest.raises(ProblemError, match="gossip"):
        overlapc.plan(**sizes, collective="gossip", target=target)
    with pytest.raises(ProblemError, match="int3"):
        overlapc.plan(**{**sizes, "dtype": "int3"}, target=target)
    for name, value in (("m", 1024.0), ("n", "1024"), ("k", None), ("world_size", True)):
        with pytest.raises(ProblemError, match=f"{name} is .*, not an integer"):
            overlapc.plan(**{**sizes, name: value}, target=target)
    assert overlapc.plan(**{**sizes, "dtype": torch.float32}, target=target) == expected
    consumer = overlapc.plan(
        **sizes, collective="all_to_all", order="collective_first", target=target
    )
    assert consumer.problem.kind == "all_to_all_gemm"


PROGRAM = """
import sys, overlapc
for target in ("cpu", "h100-nvlink", "rtx4090-pcie"):
    for m in (8, 120, 2048, 5000):
        for size in (2, 4, 8):
            for collective in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all"):
                print(overlapc.plan(
                    m=m, n=4096, k=4096, collective=collective, world_size=size,
                    dtype="float32", target=target,
                ).to_json())
assert not {"torch", "triton", "sympy", "networkx"} & set(sys.modules)
"""


def test_every_process_plans_alike_and_without_torch() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 4 * 36
