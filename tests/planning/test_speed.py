"""The searches against what they may take, on a machine that does other things too."""

from __future__ import annotations

from statistics import median

import pytest

from benchmarks import planner_speed
from benchmarks.planner_speed import (
    CHUNKED_SECONDS,
    PLANNED_SECONDS,
    SIGNALED_SECONDS,
    UNITS,
    WAVES,
    Timed,
)
from overlapc.planning.column_costs import ColumnCosts
from overlapc.planning.cost import Costs
from overlapc.planning.problem import Problem
from tests.planning.test_cuts import BANDWIDTHS, SHAPES, link_limited_machine

pytestmark = pytest.mark.alone

SLACK = 4.0
"""Times as long as allowed: process time, yet of a core that others share."""


def slowest(timed: list[Timed]) -> float:
    return max(each.seconds for each in timed)


def test_cutting_is_quick() -> None:
    timed = planner_speed.chunked(60, seed=7)
    assert max(each.size for each in timed) > 0.9 * UNITS
    assert slowest(timed) < SLACK * CHUNKED_SECONDS
    assert median(each.seconds for each in timed) < CHUNKED_SECONDS


def test_grouping_waves_is_quick() -> None:
    timed = planner_speed.signaled(60, seed=7)
    assert max(each.size for each in timed) > 0.9 * WAVES
    assert slowest(timed) < SLACK * SIGNALED_SECONDS
    assert median(each.seconds for each in timed) < SIGNALED_SECONDS


def test_planning_for_a_gpu_is_quick() -> None:
    timed = planner_speed.planned(40, seed=7)
    assert slowest(timed) < SLACK * PLANNED_SECONDS
    assert median(each.seconds for each in timed) < PLANNED_SECONDS


@pytest.mark.parametrize("costs_of", [Costs, ColumnCosts])
@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cutting_is_quick_where_compute_and_link_are_balanced(
    bandwidth: float, shape: tuple[int, int, int], costs_of: type[Costs]
) -> None:
    problem = Problem(*shape, "float32", "all_reduce", 2)
    timed = planner_speed.time_cut(costs_of(problem, link_limited_machine(bandwidth)))
    assert timed.seconds < SLACK * CHUNKED_SECONDS


def test_the_benchmark_tells_the_worst_and_the_median(capsys: pytest.CaptureFixture[str]) -> None:
    planner_speed.main(["--cases", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == ["chunked", "signaled", "planned"]
    assert all("worst" in line for line in lines)
    assert "of 50 ms, median" in lines[0]
