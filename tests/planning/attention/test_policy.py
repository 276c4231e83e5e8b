"""Where φ comes from, by what is known of the scores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.planning.attention.policy import KnownScores, choose_source

CAPPED = KnownScores(-50.0, 50.0, 0.0)

CASES = {
    "nothing known": (KnownScores(), "bfloat16", "zero"),
    "nothing known of float16": (KnownScores(), "float16", "first_tile"),
    "capped": (CAPPED, "bfloat16", "bound"),
    "capped too high for any number": (KnownScores(-200.0, 200.0), "bfloat16", "zero"),
    "sinks": (KnownScores(has_sinks=True), "float32", "sink"),
    "sinks in float16": (KnownScores(has_sinks=True), "float16", "first_tile"),
    "a sink may lie above a cap": (KnownScores(-5.0, 5.0, 0.0, has_sinks=True), "float32", "sink"),
    "positions": (KnownScores(is_moved=True), "bfloat16", "online"),
}


@pytest.mark.parametrize(("scores", "dtype", "policy"), CASES.values(), ids=CASES.keys())
def test_by_what_is_known(scores, dtype, policy):
    assert choose_source(scores, dtype, "unified").policy == policy
    assert choose_source(scores, dtype, "online").policy == "online"


RUNNING = {
    "nothing known": "running",
    "nothing known of float16": "first_tile",
    "capped": "bound",
    "capped too high for any number": "running",
    "sinks": "running",
    "positions": "online",
}


@pytest.mark.parametrize("name", RUNNING)
def test_a_running_phi_is_for_what_nothing_else_tells_of(name):
    scores, dtype, _ = CASES[name]
    source = choose_source(scores, dtype, "running")
    assert source.policy == RUNNING[name]
    assert ("running φ" in source.how) == (name not in ("capped", "positions"))


def test_a_bound_is_told_with_its_number():
    source = choose_source(KnownScores(0.0, 100.0, 48.2), "float32", "unified")
    assert source.phi == 48.2
    assert "φ = 48.2" in source.how
    assert "between 0 and 100" in source.how


def test_a_row_without_a_key_is_left_out_of_what_a_bound_promises():
    """The mutant that promises no second pass where a finite mask hides all of a row."""
    sources = [choose_source(replace(CAPPED, may_be_none=none), "float32", "unified")
               for none in (False, True)]  # fmt: skip
    assert [source.how.rpartition("no row")[2] for source in sources] == [
        " is computed twice", " that keeps a key is computed twice"
    ]  # fmt: skip
