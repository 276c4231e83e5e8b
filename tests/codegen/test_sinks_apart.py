"""Sinks far from all scores, and as low as a mask."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.codegen.attention_specs import CAUSAL
from tests.codegen.catching import wrong_values
from tests.codegen.test_decode import SPEC, check, first

LOW, HIGH = -3.4e38, 140.0


@pytest.mark.parametrize("softmax", first("sink", "first_tile", "zero", "online"))
def test_a_row_that_sees_no_key_is_one_of_its_sink(interpreted, softmax):
    """Mutant: its sink is multiplied like others, and the row is NaN."""
    spec = replace(CAUSAL, softmax=softmax, sinks=True, lengths=True)
    check(interpreted, spec, sinks=LOW, rows=2, lengths=(100, 0), wants_lse=False)


def test_of_a_high_sink_alone_the_logarithm_is_its_own(interpreted):
    """A sum that is infinite relative to φ is no row of nothing, whatever a mask tells."""
    case = {"mask": "padding", "keys": 40, "rows": 2, "sinks": HIGH, "lengths": (40, 0)}
    spec = replace(SPEC, dtype="float16", softmax="zero", sinks=True, lengths=True)
    check(interpreted, spec, **case)
    mutant = ("LEAST, MOST), first_tile", "LEAST, float('inf')), first_tile")
    with wrong_values():
        check(interpreted, spec, mutate=[mutant], **case)


@pytest.mark.parametrize("unit", [1.0, 0.125, 0.6931471805599453])
@pytest.mark.parametrize("far", [-80.0, 3.0, 70.0])
def test_weights_of_sinks_are_those_of_float32(interpreted, far, unit):
    """Two roundings, however far from a base. Mutant: those of a score, which a product rounded."""
    assert interpreted("sinks_apart.error", far, unit) < 2.5e-7
    if far > 9:
        assert interpreted("sinks_apart.error", far, unit, False) > 5e-7
