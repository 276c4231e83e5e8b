"""A φ that launches leave to later ones, in Triton's interpreter, launch by launch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen import score_programs as programs
from tests.codegen.catching import wrong_values

KINDS = ("prefill", "decode")
SPEC = AttentionSpec("float32", 16, 16, groups=2, scale=0.25, softmax="running")
BRAIN = replace(SPEC, dtype="bfloat16", groups=3, after=0, align="bottom_right")
KEPT = replace(SPEC, program=programs.KEPT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [SPEC, BRAIN], ids=["float32", "bfloat16"])
def test_the_second_call_redoes_nothing(interpreted, kind, spec):
    shares = interpreted("running_cases.redone", kind, str(spec), [300.0, 300.0, -200.0, -200.0])
    assert shares == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_as_those_of_opt(interpreted, kind):
    """From -500 to 500, about zero: most rows are redone at first, and few from then on."""
    first, *others = interpreted("running_cases.spread", kind, str(SPEC), 40.0)
    assert first > 0.5
    assert max(others) < 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["orders", "strange", "stays", "disturbed"])
def test_it(interpreted, name, kind):
    interpreted("running_cases.call", name, kind, str(KEPT if name == "strange" else SPEC))
