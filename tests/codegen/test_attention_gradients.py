"""Gradients of generated attention, in Triton's interpreter, against those of eager in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.spec import AttentionSpec

SPEC = AttentionSpec("float32", 16, 16, scale=0.25)
CAUSAL = replace(SPEC, after=0, align="bottom_right")

CASES = {
    "plain": (SPEC, {}),
    "causal": (replace(SPEC, after=0), {"rows": 45}),
}


@pytest.mark.parametrize(("spec", "named"), CASES.values(), ids=CASES.keys())
def test_values(interpreted, spec, named):
    interpreted("attention_gradient_cases.run", str(spec), **named)
