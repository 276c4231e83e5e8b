from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlapc.planning import cuts
from overlapc.planning.cost import Costs, chunked_timeline
from overlapc.planning.curve import Curve
from overlapc.planning.cuts import best_cut, quantum
from overlapc.planning.problem import Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target
from tests.planning.machines import random_problem, random_tables, random_target


def compositions(costs: Costs, unit_rows: int) -> Iterator[list[int]]:
    """Every cut into two or more groups of whole units, the last one ragged."""
    inner = list(range(unit_rows, costs.problem.m, unit_rows))
    for mask in range(1, 2 ** len(inner)):
        ends = [end for bit, end in enumerate(inner) if mask >> bit & 1] + [costs.problem.m]
        yield [right - left for left, right in zip([0, *ends], ends, strict=False)]


def seconds(costs: Costs, rows: list[int] | tuple[int, ...]) -> float:
    return chunked_timeline(costs, rows)[-1].end


def excess(costs: Costs, unit_rows: int) -> float:
    """By how much the found cut is slower than the best of all compositions, as a ratio less 1."""
    found = best_cut(costs, unit_rows)
    best = min((seconds(costs, rows) for rows in compositions(costs, unit_rows)), default=None)
    if best is None:
        assert found == ()
        return 0.0
    assert sum(found) == costs.problem.m
    assert len(found) > 1
    assert all(rows % unit_rows == 0 for rows in found[:-1])
    return seconds(costs, found) / best - 1


def random_costs(random: Random, max_units: int) -> tuple[Costs, int]:
    if random.random() < 0.5:
        return random_tables(random, random.randint(1, max_units)), 1
    unit = random.choice([1, 5, 16])
    return Costs(random_problem(random, unit * max_units), random_target(random)), unit


def worst_excess(seed: int, cases: int, max_units: int) -> float:
    random = Random(seed)
    return max(excess(*random_costs(random, max_units)) for _ in range(cases))


@pytest.mark.parametrize("seed", range(4))
def test_no_composition_is_faster(seed: int) -> None:
    assert worst_excess(seed, 1500, 8) < 1e-9


def test_no_composition_of_twelve_units_is_faster() -> None:
    # More than eight units take the coarse search first.
    assert worst_excess(11, 250, 12) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_no_composition_is_faster_at_length(seed: int) -> None:
    assert worst_excess(100 + seed, 400, 12) < 1e-9


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 9))
def test_no_composition_is_faster_for_any_table(random: Random, units: int) -> None:
    assert excess(random_tables(random, units), 1) < 1e-9


def only_the_earliest_end(reached: list) -> list:
    return undominated([min(reached, key=lambda label: label[1])])


def only_the_earliest_ready(reached: list) -> list:
    return undominated([min(reached, key=lambda label: label[0])])


undominated, advance, least = cuts._undominated, cuts.advance, cuts._least
MUTANTS: dict[str, tuple[str, Callable]] = {
    "one label, by end": ("_undominated", only_the_earliest_end),
    "one label, by ready": ("_undominated", only_the_earliest_ready),
    "contention forgotten": ("advance", lambda R, E, w, a, q, *_: advance(R, E, w, a, q, 1.0, 1.0)),
    "latency forgotten": ("advance", lambda R, E, w, a, q, *x: advance(R, E, w, q, q, *x)),
    "link idles while computing": ("advance", lambda R, E, w, a, *x: (R + w, E + w + a)),
    "prunes the optimum": ("_least", lambda starts, s: [1.2 * x for x in least(starts, s)]),
}


@pytest.mark.parametrize(("name", "mutant"), MUTANTS.values(), ids=MUTANTS.keys())
def test_a_wrong_search_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, mutant: Callable
) -> None:
    monkeypatch.setattr(cuts, name, mutant)
    try:
        worst = worst_excess(11, 40, 12)
    except (IndexError, ValueError):
        return  # Every label was pruned: seen as well.
    assert worst > 1e-3


def link_limited_machine(bandwidth: float) -> Target:
    curve = Curve(tuple((1 << bit, 3e-4 + (1 << bit) / bandwidth) for bit in range(12, 26)))
    rates = GemmRates("float32", 1.1e11, 2e-5, pack_bytes_per_second=1.5e10, tile_rows=16)
    link = Link("all_reduce", 2, curve, curve, 3e-5)
    return Target("slow", "cpu", "gloo", True, (rates,), (link,), 1.15, 1.15)


SHAPES = [(2048, 2048, 2048), (1024, 2048, 4096), (4096, 4096, 4096)]
BANDWIDTHS = [37e6, 125e6, 1e9]


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_twice_as_many_units_gain_below_one_percent(
    bandwidth: float, shape: tuple[int, int, int]
) -> None:
    costs = Costs(Problem(*shape, "float32", "all_reduce", 2), link_limited_machine(bandwidth))
    coarse, fine = (best_cut(costs, quantum(costs.problem, costs.target, u)) for u in (32, 64))
    assert 0 <= seconds(costs, coarse) / seconds(costs, fine) - 1 < 0.01


@pytest.mark.parametrize(("units", "budget"), [(32, 0.02), (64, 0.2)])
def test_the_search_is_quick(units: int, budget: float) -> None:
    # Budgets are three times what a 2.5 GHz core takes; the least of three runs is asked for.
    problem = Problem(4096, 4096, 4096, "float32", "all_reduce", 2)
    costs = Costs(problem, link_limited_machine(37e6))
    taken = []
    for _ in range(3):
        start = time.process_time()
        best_cut(costs, quantum(problem, costs.target, units))
        taken.append(time.process_time() - start)
    assert min(taken) < budget


@pytest.mark.parametrize(
    ("m", "tile", "units", "rows"),
    [
        (1, 1, 32, 16),
        (512, 1, 32, 16),
        (513, 1, 32, 32),
        (8192, 128, 32, 256),
        (8192, 128, 64, 128),
    ],
)
def test_units_are_whole_tiles(m: int, tile: int, units: int, rows: int) -> None:
    target = link_limited_machine(1e9)
    rates = GemmRates("float32", 1e12, 0.0, tile_rows=tile)
    target = Target("t", "cpu", "gloo", True, (rates,), target.links, 1.0, 1.0)
    problem = Problem(m, 64, 64, "float32", "all_reduce", 2)
    assert quantum(problem, target, units) == rows
    assert -(-m // rows) <= units
