"""What ranks of one group have in common, whatever each of them computes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.planning.alike import are_alike, typical
from overlapc.planning.problem import COLLECTIVE_FIRST, COLLECTIVES, Problem, orders_of
from overlapc.planning.tiles import MOST_SUMS

MINE = {
    "epilogue_bytes": 4096,
    "cuts_columns": True,
    "kernel_sums": MOST_SUMS,
    "takes_map": True,
    "program": "{}",
    "computes_beside": True,
    "layouts": ("col", "row"),
}
"""What a rank has to itself, beside the size that its collective says nothing of."""

OTHERS = {"m": 1024, "dtype": "bfloat16", "sent_dtype": "bfloat16", "world_size": 2}

PROBLEMS = [
    Problem(512, 256, 128, "float32", collective, 4, order=order)
    for collective in COLLECTIVES
    for order in orders_of(collective)
]


def own_size(problem: Problem) -> str:
    return "n" if problem.order == COLLECTIVE_FIRST else "k"


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda one: one.kind)
def test_what_a_rank_has_to_itself_changes_nothing(problem):
    """Mutants: the rank's own size is tried as well, what it computes beside is kept, columns are
    cut where this rank can."""
    size = own_size(problem)
    for changes in (*({name: value} for name, value in MINE.items()), {size: 3}, {size: 0}):
        other = replace(problem, **changes)
        assert typical(other) == typical(problem), changes
        assert are_alike(other, problem, rows=False), changes


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda one: one.kind)
def test_what_the_collective_says_counts(problem):
    alike = {"k": "n", "n": "k"}[own_size(problem)]
    for changes in (*({name: value} for name, value in OTHERS.items()), {alike: 64}):
        other = replace(problem, **changes)
        assert typical(other) != typical(problem), changes
        assert are_alike(other, problem, rows=True) == (changes == {"m": 1024}), changes


def test_usual_sizes_are_parts_of_the_collectives():
    sizes = [one.k for one in typical(Problem(512, 256, 9, "float32", "all_reduce", 4))]
    assert sizes == [16, 32, 64, 128, 256, 512]
    (after, before) = (
        typical(Problem(512, n, k, "float32", "all_to_all", 4, order=order))
        for order, n, k in (("collective_first", 9, 256), ("gemm_first", 256, 9))
    )
    assert [one.n for one in after] == [one.k for one in before] == [4 * size for size in sizes]
    assert {one.k for one in typical(Problem(8, 1, 9, "float32", "all_reduce", 4))} == {1, 2}
