from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from random import Random

import pytest

import overlapc
from overlapc.errors import OptionError, PlanError, ProblemError
from overlapc.planning import plan as plan_sizes
from overlapc.planning.cost import Costs, chunked_timeline
from overlapc.planning.curve import Curve
from overlapc.planning.cuts import best_cut, quantum
from overlapc.planning.problem import Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.search import MEASURED_MARGIN, UNMEASURED_MARGIN, plan, plan_rows
from overlapc.planning.target import Target
from tests.planning.machines import random_problem, random_target


def machine(bandwidth: float, latency: float = 1e-4, c: float = 1.0, d: float = 1.0) -> Target:
    """A core of 100 GFLOP/s and a link."""
    curve = Curve(tuple((1 << bit, latency + (1 << bit) / bandwidth) for bit in range(8, 28)))
    rates = GemmRates("float32", 1e11, 1e-5, pack_bytes_per_second=1e10)
    return Target("m", "cpu", "gloo", True, (rates,), (Link("all_reduce", 2, curve, curve),), c, d)


PROBLEM = Problem(1024, 1024, 1024, "float32", "all_reduce", 2)


def test_a_balanced_problem_is_cut() -> None:
    made = plan(PROBLEM, machine(2e8))
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
            best = chunked_timeline(costs, best_cut(costs, quantum(PROBLEM, here)))[-1].end
            cut = plan(PROBLEM, here).schedule == "chunked"
            assert cut == (best <= (1 - margin) * costs.serial())
            decisions.add((known, cut))
    assert len(decisions) == 4


def test_a_plan_is_never_predicted_slower_than_serial_nor_faster_than_its_timeline() -> None:
    random = Random(0)
    for _ in range(300):
        made = plan(random_problem(random, 2000), random_target(random))
        assert made.predicted_seconds <= made.serial_seconds
        assert made.predicted_seconds == max(event.end for event in made.timeline)
        assert sum(made.rows) == made.problem.m
        assert len(made.timeline) == 2 * len(made.rows)


def test_a_schedule_can_be_asked_for() -> None:
    fast = machine(1e13, 1e-6)
    assert plan(PROBLEM, fast, "chunked").code == "forced"
    assert len(plan(PROBLEM, fast, "chunked").rows) > 1
    assert plan(PROBLEM, machine(2e8), "serial").rows == (1024,)
    assert plan(PROBLEM, machine(2e8), "signaled").code == "serial_no_signals"
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


def test_sizes_can_be_given_by_name(tmp_path) -> None:
    target = machine(2e8)
    target.save(tmp_path / "m.json")
    sizes = {"m": 1024, "n": 1024, "k": 1024, "world_size": 2, "dtype": "float32"}
    expected = plan(PROBLEM, target)
    assert overlapc.plan(**sizes, collective="all_reduce", target=target) == expected
    assert plan_sizes(**sizes, target=tmp_path / "m.json") == expected
    with pytest.raises(ProblemError, match="gossip"):
        overlapc.plan(**sizes, collective="gossip", target=target)
    with pytest.raises(ProblemError, match="int3"):
        overlapc.plan(**{**sizes, "dtype": "int3"}, target=target)


PROGRAM = """
import sys, overlapc
for target in ("cpu", "h100-nvlink", "rtx4090-pcie"):
    for m in (1, 100, 2048, 5000):
        for size in (2, 4, 8):
            print(overlapc.plan(
                m=m, n=4096, k=4096, world_size=size, dtype="float32", target=target
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
    assert len(outputs.pop().splitlines()) == 36
