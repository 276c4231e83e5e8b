"""Gradients of generated attention, in Triton's interpreter, against those of eager in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen import score_programs as programs

SPEC = AttentionSpec("float32", 16, 16, scale=0.25)
HALF = replace(SPEC, dtype="float16", softmax="first_tile")
BRAIN = replace(SPEC, dtype="bfloat16")
CAUSAL = replace(SPEC, after=0, align="bottom_right")
WINDOW = replace(CAUSAL, before=9)

BIAS = programs.program("matrix:float32", ("add.Tensor", "%0", "@0"))
LEAST = programs.program(
    "matrix:bool matrix:float32", ("where.ScalarOther", "@0", "@1", -3.4e38),
    ("add.Tensor", "%0", "%1"),
)  # fmt: skip
"""A mask of the least number, of every row, where a bias stands otherwise."""

CASES = {
    "grouped, ragged heads": (replace(SPEC, groups=3, head_dim=20, value_dim=33), {"heads": 2}),
    "causal from the first key": (replace(HALF, after=0), {"rows": 45, "sums": True}),
    "causal from the last key": (replace(CAUSAL, dtype="bfloat16"), {"tile": (32, 16)}),
    "more rows than keys": (replace(CAUSAL, groups=2), {"rows": 45, "keys": 20}),
    "a window": (WINDOW, {"rows": 45, "tile": (16, 32)}),
    "lengths": (replace(WINDOW, lengths=True, dead="zero"), {"lengths": (60, 0)}),
    "no keys in a batch": (replace(SPEC, lengths=True), {"lengths": (33, 0)}),
    "sinks": (replace(BRAIN, sinks=True, softmax="sink", groups=2), {"sums": True}),
    "soft-cap": (replace(SPEC, program=programs.SOFT_CAP, softmax="bound", bound=1.5), {}),
    "inputs of every shape": (replace(SPEC, program=programs.EVERY_SHAPE, groups=2), {}),
    "rows of no key": (replace(SPEC, program=programs.KEPT, after=0), {"kept": 0.2}),
    "rows of no key, as torch's own": (
        replace(HALF, program=programs.KEPT, dead="zero"), {"kept": 0.03},
    ),
    "a bias of each head and batch": (replace(CAUSAL, program=BIAS, groups=2), {}),
    "a bias of each row and key": (replace(WINDOW, program=BIAS, dtype="float16", groups=2), {
        "shared": (0, 1), "tile": (32, 16),
    }),
    "a bias of each head": (replace(SPEC, program=BIAS, lengths=True, groups=2), {
        "shared": (0,), "lengths": (45, 20),
    }),
    "slopes of each head and key": (replace(CAUSAL, program=programs.ALIBI), {"heads": 2}),
    "a finite mask, of whole rows too": (
        replace(SPEC, program=programs.KEPT_FINITE, after=3), {"kept": 0.0, "rows": 45},
    ),
    "a finite mask that is added": (replace(SPEC, program=LEAST), {"kept": 0.0}),
    "scores of hundreds": (replace(SPEC, softmax="online"), {"spread": 100.0}),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "named"), CASES.values(), ids=CASES.keys())
def test_values(interpreted, spec, named):
    interpreted("attention_gradient_cases.run", str(spec), **named)
