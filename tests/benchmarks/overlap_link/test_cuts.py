"""Cuts that need no planner: they add up, are multiples, have the form that their name says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.overlap_link import cuts
from benchmarks.overlap_link.cuts import (
    FORMS,
    GRANULARITY,
    PARTS,
    equal_parts,
    fixed_candidates,
    weighted,
)
from benchmarks.overlap_link.shapes import KINDS, pairs

SIZES = st.tuples(st.integers(1, 700), st.sampled_from([1, 2, 4, 8])).map(
    lambda s: (s[0] * s[1], s[1])
)


def faults(m: int, multiple: int, rows: Sequence[int]) -> list[str]:
    """What is wrong with a cut of ``m`` rows."""
    found = [] if sum(rows) == m else ["sum"]
    found += [] if all(count > 0 for count in rows) else ["empty group"]
    return found + ([] if all(count % multiple == 0 for count in rows) else ["multiple"])


@given(SIZES, st.lists(st.integers(1, 20), min_size=1, max_size=16))
def test_every_cut_is_one(size: tuple[int, int], weights: list[int]) -> None:
    m, multiple = size
    rows = weighted(m, weights, multiple)
    assert faults(m, multiple, rows) == []
    assert len(rows) <= len(weights)


def test_a_wrong_cut_is_noticed() -> None:
    assert faults(64, 4, (32, 16, 8)) == ["sum"]
    assert faults(64, 4, (64, 0)) == ["empty group"]
    assert faults(64, 4, (30, 34)) == ["multiple"]


@given(st.integers(1, 4096), st.integers(1, 16))
def test_equal_parts_differ_by_one_unit_at_most(m: int, parts: int) -> None:
    rows = equal_parts(m, parts)
    assert max(rows) - min(rows) <= cuts.unit(m, (1,) * parts, 1)
    assert len(rows) == min(parts, m)


def test_groups_are_whole_register_blocks_where_there_are_enough_rows() -> None:
    assert all(count % GRANULARITY == 0 for count in equal_parts(2048, 12, 4))
    assert all(count % GRANULARITY == 0 for count in weighted(1024, FORMS["geometric up"], 2))
    assert equal_parts(100, 3, 4) == (32, 32, 36)


def test_rows_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 4"):
        equal_parts(66, 2, 4)


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_measured_shape_has_all_twelve(ranks: int) -> None:
    for pair in pairs(KINDS, ranks=ranks):
        if pair.is_extreme:
            continue
        multiple = 1 if pair.kind == "gemm_all_reduce" else ranks
        found = fixed_candidates(pair.shape.m, multiple)
        assert len(found) == 12
        assert len(set(found.values())) == 12
        assert all(faults(pair.shape.m, multiple, rows) == [] for rows in found.values())


def test_the_forms_are_what_their_names_say() -> None:
    found = fixed_candidates(2048)
    assert found["serial"] == (2048,)
    assert [len(found[f"{parts} parts"]) for parts in PARTS] == list(PARTS)
    up, down = found["geometric up"], found["geometric down"]
    assert list(up) == sorted(up)
    assert list(down) == sorted(down, reverse=True)
    assert up[-1] > 7 * up[0]
    assert found["small first"][0] * 3 < min(found["small first"][1:])
    assert found["small last"][-1] * 3 < min(found["small last"][:-1])


def test_forms_that_do_not_fit_are_left_out() -> None:
    assert set(fixed_candidates(4)) == {"serial", "2 parts", "3 parts", "4 parts"}
    assert set(fixed_candidates(4, 4)) == {"serial"}
