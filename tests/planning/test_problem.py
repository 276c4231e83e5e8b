from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from overlapc.errors import ProblemError
from overlapc.planning.problem import Problem
from overlapc.reporting.records import KINDS

AR = Problem(64, 48, 32, "bfloat16", "all_reduce", 4)


@pytest.mark.parametrize(
    ("collective", "order", "kind", "granule"),
    [
        ("all_reduce", "", "gemm_all_reduce", 1),
        ("all_reduce", "gemm_first", "gemm_all_reduce", 1),
        ("reduce_scatter", "", "gemm_reduce_scatter", 4),
        ("all_gather", "", "all_gather_gemm", 4),
        ("all_gather", "collective_first", "all_gather_gemm", 4),
        ("all_to_all", "", "gemm_all_to_all", 4),
        ("all_to_all", "collective_first", "all_to_all_gemm", 4),
    ],
)
def test_a_problem_knows_its_kind(collective: str, order: str, kind: str, granule: int) -> None:
    problem = replace(AR, collective=collective, order=order)
    assert problem.kind == kind
    assert kind in KINDS
    assert problem.is_consumer == kind.endswith("_gemm")
    assert problem.granule == granule
    assert replace(problem, row_multiple=16).granule == 16


def test_bytes_are_those_of_the_whole_tensor_that_is_sent() -> None:
    assert AR.sent_bytes(10) == 10 * 48 * 2
    assert replace(AR, collective="reduce_scatter").sent_bytes(10) == 10 * 48 * 2
    gather = replace(AR, collective="all_gather")
    assert gather.sent_bytes(10) == 10 * 32 * 2
    assert replace(gather, sent_dtype="uint8").sent_bytes(10) == 10 * 32
    assert replace(AR, sent_dtype="float32").sent_bytes(10) == 10 * 48 * 4


def test_only_consumers_have_rows_of_their_own_first() -> None:
    gather = replace(AR, collective="all_gather")
    assert gather.local_rows(40) == 10
    assert replace(gather, axis=1).local_rows(40) == 0
    assert AR.local_rows(40) == 0


def test_along_dimension_1_groups_are_plain_bands() -> None:
    """However many rows a unit has. An all-reduce has no such dimension."""
    scatter = replace(AR, collective="reduce_scatter", row_multiple=8)
    across = replace(scatter, axis=1)
    assert (scatter.parts, across.parts) == (4, 1)
    assert (scatter.run_rows, across.run_rows) == (16, 64)
    assert (scatter.granule, across.granule) == (8, 8)
    assert replace(across, row_multiple=0, m=66).granule == 1
    assert across.resolved() != scatter.resolved()
    assert replace(AR, axis=1).resolved() == AR.resolved()


def test_what_means_the_same_is_equal_once_resolved() -> None:
    explicit = Problem(64, 48, 32, "bfloat16", "all_reduce", 4, 0, "gemm_first", "bfloat16", 1)
    assert replace(AR, cuts_columns=True).resolved() != AR.resolved()
    assert explicit != AR
    assert explicit.resolved() == AR.resolved() == AR.resolved().resolved()
    gather = replace(AR, collective="all_gather").resolved()
    assert (gather.order, gather.row_multiple) == ("collective_first", 4)
    assert replace(AR, sent_dtype="float32").resolved() != AR.resolved()
    assert replace(gather, cuts_columns=True).resolved() == gather


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"order": "collective_first"}, "order 'collective_first' of all_reduce is not gemm_first"),
        ({"collective": "all_gather", "order": "gemm_first"}, "is not collective_first"),
        ({"collective": "all_to_all", "order": "both"}, "gemm_first or collective_first"),
        (
            {"collective": "reduce_scatter", "m": 66},
            "m is 66, no multiple of 4 rows, of which each of 4 ranks has as many",
        ),
        ({"row_multiple": 48}, "m is 64, no multiple of 48 rows"),
        ({"row_multiple": -1}, "row_multiple is -1"),
        ({"epilogue_bytes": -1}, "epilogue_bytes is -1"),
        ({"sent_dtype": "int8"}, "sent_dtype 'int8'"),
        ({"m": 64.0}, "m is 64.0, not an integer"),
        ({"n": "48"}, "n is '48', not an integer"),
        ({"k": True}, "k is True, not an integer"),
        ({"axis": 2}, "axis is 2, not 0 or 1"),
        ({"world_size": 0}, "a group has members"),
        ({"world_size": None}, "world_size is None, not an integer"),
        ({"dtype": "int32"}, "dtype 'int32'"),
        ({"collective": "gossip"}, "collective 'gossip'"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ProblemError, match=says) as caught:
        replace(AR, **change)
    if "no multiple" in says:
        assert caught.value.remedy == f"pad m to {68 if change.get('m') else 96}"


def test_groups_have_to_make_up_what_is_cut() -> None:
    scatter = replace(AR, collective="reduce_scatter", cuts_columns=True)
    assert scatter.dimensions == ("rows", "columns")
    assert scatter.is_cut_by((60, 4))
    assert scatter.is_cut_by((45, 3), "columns")
    assert scatter.is_cut_by((48,), "columns")
    for counts, by in [
        ((60, 3), "rows"),
        ((61, 3), "rows"),
        ((64, 0), "rows"),
        ((68, -4), "rows"),
        ((), "rows"),
        ((60, 4), "columns"),
        ((48, 0), "columns"),
        ((60, 4), "diagonals"),
    ]:
        assert not scatter.is_cut_by(counts, by)
    assert replace(AR, m=0).is_cut_by((0,))
    for rows_only in (AR, replace(AR, collective="all_gather", cuts_columns=True)):
        assert rows_only.dimensions == ("rows",)
        assert not rows_only.is_cut_by((45, 3), "columns")
