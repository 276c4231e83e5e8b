from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import sympy

from overlapc.errors import ProblemError
from overlapc.planning import crossovers as module
from overlapc.planning.crossovers import Choice, crossovers, crossovers_in
from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.planning.target import Target
from tests.targets import SLOW_LINK

CPU = Target.load("cpu")
PROBLEM = Problem(512, 512, 256, "float32", "reduce_scatter", 2)


def choice(rows: int) -> Choice:
    return Choice.of(plan(replace(PROBLEM, m=rows), SLOW_LINK), by_groups=True)


def test_every_change_is_between_neighbours_and_none_is_missed_where_samples_are_dense() -> None:
    found = crossovers(PROBLEM, SLOW_LINK, 2, 600)
    grid = range(2, 601, 2)
    expected = [
        (right, choice(left), choice(right))
        for left, right in pairwise(grid)
        if choice(left) != choice(right)
    ]
    assert found.first == choice(2)
    for change in found.changes:
        assert (change.at, change.before, change.after) in expected
        assert change.rows == change.at
    # What comes and goes between two samples that agree may be missed, and is missed in pairs.
    assert (len(expected) - len(found.changes)) % 2 == 0
    assert expected[0][0] == found.changes[0].at
    assert len(found.changes) > 2


def test_with_every_row_count_sampled_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sampled", lambda count: list(range(count)))
    found = crossovers(PROBLEM, SLOW_LINK, 2, 300)
    expected = [b for a, b in pairwise(range(2, 301, 2)) if choice(a) != choice(b)]
    assert [change.at for change in found.changes] == expected


def test_rows_can_be_an_expression_in_a_symbol() -> None:
    s0 = sympy.Symbol("s0", integer=True, positive=True)
    found = crossovers_in(8 * s0, PROBLEM, SLOW_LINK, 1, 75)
    assert (found.name, found.low, found.high) == ("s0", 1, 75)
    for change in found.changes:
        assert change.rows == 8 * change.at
        assert choice(8 * change.at - 8) == change.before
        assert choice(8 * change.at) == change.after
    assert found.changes
    # Only every second value gives rows that two ranks share.
    odd = crossovers_in(s0 + 1, PROBLEM, SLOW_LINK, 0, 300)
    assert all(change.at % 2 == 1 for change in odd.changes)
    assert odd.low == 1


def test_a_sentence_tells_where_the_plan_changes() -> None:
    found = crossovers(PROBLEM, SLOW_LINK, 2, 4096)
    text = str(found)
    first = found.changes[0]
    assert text.startswith(f"{found.first} at m = 2, {first.after} from m = {first.at}")
    assert text.endswith("up to m = 4096.")
    few = replace(found, changes=found.changes[:2])
    assert "more changes" not in str(few)
    many = replace(found, changes=found.changes[:1] * 9)
    assert "and 3 more changes, up to" in str(many)
    same = replace(found, changes=())
    assert str(same) == f"{found.first} at m = 2, up to m = 4096."


def test_pointwise_bytes_grow_with_the_rows() -> None:
    rates = tuple(replace(rates, pointwise_bytes_per_second=1e8) for rates in SLOW_LINK.gemm)
    target = replace(SLOW_LINK, gemm=rates)
    heavy = replace(PROBLEM, epilogue_bytes=PROBLEM.m * 4096)
    found = crossovers(heavy, target, 2, 600)
    for change in found.changes:
        there = replace(heavy, m=change.rows, epilogue_bytes=change.rows * 4096)
        assert Choice.of(plan(there, target), by_groups=True) == change.after


def test_a_range_without_rows_and_an_expression_without_one_symbol_are_errors() -> None:
    with pytest.raises(ProblemError, match="multiple of 2 rows"):
        crossovers(PROBLEM, CPU, 3, 3)
    a, b = sympy.symbols("a b")
    for expression, count in ((a + b, 2), (sympy.Integer(8), 0)):
        with pytest.raises(ProblemError, match=f"{count} symbols"):
            crossovers_in(expression, PROBLEM, CPU, 1, 8)
