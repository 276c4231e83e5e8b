"""Attentions of which both the result and the gradients are compared with float64."""

from __future__ import annotations

from dataclasses import replace

from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen import score_programs as programs

SPEC = AttentionSpec("float32", 16, 16, scale=0.25)
HALF = replace(SPEC, dtype="float16", softmax="first_tile")
BRAIN = replace(SPEC, dtype="bfloat16")
CAUSAL = replace(SPEC, after=0, align="bottom_right")
WINDOW = replace(CAUSAL, before=9)

CASES = {
    "grouped, ragged heads": (replace(SPEC, groups=3, head_dim=20, value_dim=33), {"heads": 2}),
    "causal from the last key": (replace(CAUSAL, dtype="bfloat16"), {"tile": (32, 16)}),
    "a window": (WINDOW, {"rows": 45, "tile": (16, 32)}),
    "soft-cap": (replace(SPEC, program=programs.SOFT_CAP, softmax="bound", bound=1.5), {}),
    "inputs of every shape": (replace(SPEC, program=programs.EVERY_SHAPE, groups=2), {}),
    "rows of no key, as torch's own": (
        replace(HALF, program=programs.KEPT, dead="zero"), {"kept": 0.03},
    ),
}  # fmt: skip
"""Specs, and what a call of it has other than the usual sizes."""
