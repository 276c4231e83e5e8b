"""A φ that launches leave to later ones, in Triton's interpreter, launch by launch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen import score_programs as programs
from tests.codegen.catching import wrong_values

SPEC = AttentionSpec("float32", 16, 16, groups=2, scale=0.25, softmax="running")
BRAIN = replace(SPEC, dtype="bfloat16", groups=3, after=0, align="bottom_right")
KEPT = replace(SPEC, program=programs.KEPT)


def long(*case):
    """A case of long runs alone."""
    return pytest.param(*case, marks=pytest.mark.long)


def call(interpreted, name, kind, mutate=None):
    spec = KEPT if name == "strange" else SPEC
    interpreted("running_cases.call", name, kind, str(spec), mutate)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [("prefill", SPEC), ("decode", SPEC), long("prefill", BRAIN), long("decode", BRAIN)],
)
def test_the_second_call_redoes_nothing(interpreted, kind, spec):
    shares = interpreted("running_cases.redone", kind, str(spec), [300.0, 300.0, -200.0, -200.0])
    assert shares == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", [long("prefill"), "decode"])
def test_scores_as_those_of_opt(interpreted, kind):
    """From -200 to 200: most rows are redone at first, and few from then on."""
    first, *others = interpreted("running_cases.spread", kind, str(SPEC), 40.0)
    assert first > 0.5
    assert max(others) < 0.1


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_the_order_of_programs_is_of_no_account(interpreted, kind):
    call(interpreted, "orders", kind)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_rows_of_nothing_or_nan_say_nothing(interpreted, kind):
    call(interpreted, "strange", kind)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_it_stays_where_it_serves(interpreted, kind):
    call(interpreted, "stays", kind)


@pytest.mark.parametrize("kind", [long("prefill"), "decode"])
def test_it_may_change_below_a_launch(interpreted, kind):
    call(interpreted, "disturbed", kind)


def test_what_vanished_beside_a_phi_that_is_gone_is_redone(interpreted):
    call(interpreted, "lost", "decode")


MUTANTS = [
    ("lost", "decode", 'SOFTMAX == "first_tile":\n            # Row',
     "HAVE_PEAKS:\n            # Row"),
    ("settles", "decode", "old + tl.floor(", "old + 0.0 * tl.floor("),
    long("settles", "prefill", "old + tl.floor(", "old + 0.0 * tl.floor("),
    ("orders", "decode", "before % ONE_ROW == ctas - 1", "before >= 0"),
    ("orders", "prefill", "before % ONE_ROW == ctas - 1", "before >= 0"),
    ("disturbed", "decode", '"first_tile" or SOFTMAX == "running"', '"first_tile"'),
    long("strange", "prefill", "inside & (apart * 0.0 == 0.0)", "inside & (apart != 1.5)"),
    long("strange", "decode", "inside & (apart * 0.0 == 0.0)", "inside & (apart != 1.5)"),
    long("strange", "decode", ".to(tl.float32) / HEADS", ".to(tl.float32)"),
    long("settles", "decode", "moves + head, tl.zeros_like(head).to", "moves + head, head.to"),
    long("settles", "decode", "tl.store(done, tl.zeros_like(before))", "pass"),
    long("settles", "decode", "add(moves + head, own_moves", "add(moves, own_moves"),
    long("settles", "prefill", "add(moves + head, tl.sum", "add(moves, tl.sum"),
    long("stays", "prefill", "tl.sum(own, 0), mask=count > 0", "tl.sum(own, 0), mask=count >= 0"),
    long("stays", "decode", "mask=row_inside & (count > 0)", "mask=row_inside"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "old", "new"), MUTANTS)
def test_a_mutant_is_caught(interpreted, name, kind, old, new):
    with wrong_values():
        call(interpreted, name, kind, (old, new))
