"""Bounds of scores hold for every product, and φ from them for every row of keys."""

from __future__ import annotations

import math

import pytest
import torch

from overlapc.codegen.attention.bounds import MOST_KEYS, bounds_of, safe_phi
from overlapc.codegen.attention.policies import LARGEST, SAFE_SUMS
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.epilogue import Epilogue
from overlapc.runtime.attention.program import scores_of
from tests.codegen import score_programs as programs
from tests.codegen.score_programs import program

TANH = ("tanh.default", "%0")

PROGRAMS = {
    "soft-cap": (programs.SOFT_CAP, (-1.5, 1.5)),
    "less": (program("", TANH, ("sub.Tensor", "%1", 3.0)), (-4.0, -2.0)),
    "turned": (program("", TANH, ("rsub.Scalar", "%1", 3.0)), (-math.inf, math.inf)),
    "a half": (program("", ("sigmoid.default", "%0"), ("mul.Tensor", "%1", -8.0)), (-8.0, 0.0)),
    "clamped": (
        program("", ("clamp.default", "%0", -2.0, 5.0), ("neg.default", "%1")), (-5.0, 2.0),
    ),
    "clamped above": (program("", ("clamp.default", "%0", None, 5.0)), (-math.inf, 5.0)),
    "squared": (program("", TANH, ("mul.Tensor", "%1", 3.0), ("square.default", "%2")), (0.0, 9.0)),
    "one of two": (
        program("matrix:bool", TANH, ("where.self", "@0", "%1", "%0")), (-math.inf, math.inf),
    ),
    "a weak fill": (
        program("matrix:bool", TANH, ("where.ScalarOther", "@0", "%1", 7.0)), (-1.0, 7.0),
    ),
    "a mask": (
        program("matrix:bool", TANH, ("where.ScalarOther", "@0", "%1", -math.inf)), (-1.0, 1.0),
    ),
    "a bias": (
        program("matrix:float32", TANH, ("add.Tensor", "%1", "@0")), (-math.inf, math.inf),
    ),
    "any times zero": (program("", ("mul.Tensor", "%0", 0.0)), (-math.inf, math.inf)),
    "over a number": (program("", TANH, ("div.Tensor", "%1", -0.25)), (-4.0, 4.0)),
    "nothing": (program("", ("mul.Tensor", "%0", 2.0)), (-math.inf, math.inf)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_bounds(name):
    text, wanted = PROGRAMS[name]
    found = bounds_of(Epilogue.parse(text).calls[1:])
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_score_lies_outside(name):
    text, _ = PROGRAMS[name]
    spec = AttentionSpec("float32", 8, 8, program=text)
    least, most = bounds_of(Epilogue.parse(text).calls[1:])
    torch.manual_seed(0)
    product = 10 * torch.randn(1, 1, 64, 64)
    inputs = [
        torch.rand(64, 64) < 0.5 if item.dtype == "bool" else torch.randn(64, 64)
        for item in spec.inputs
    ]
    scores = scores_of(spec, product, inputs)
    kept = scores[scores > -math.inf]
    assert bool(((kept >= least - 1e-5) & (kept <= most + 1e-5)).all())


SPANS = [(-50.0, 50.0), (-30.0, 30.0), (0.0, 100.0), (-100.0, 0.0), (-3.0, 3.0), (40.0, 90.0)]


@pytest.mark.parametrize("dtype", SAFE_SUMS)
@pytest.mark.parametrize("span", SPANS)
def test_every_row_is_exact_relative_to_phi(dtype, span):
    """Rows of one key and of the most, all at either bound."""
    phi = safe_phi(dtype, span)
    if phi is None:
        assert span[1] - span[0] > (12 if dtype == "float16" else 105)
        return
    sums = SAFE_SUMS[dtype]
    for keys in (1, MOST_KEYS):
        for score in span:
            total = keys * math.exp(score - phi)
            assert max(sums.least, keys * sums.least_each) <= total <= sums.most
            assert math.exp(score - phi) < LARGEST[dtype]


def test_a_span_of_no_number():
    assert safe_phi("float32", (-200.0, 200.0)) is None
    assert safe_phi("bfloat16", (-math.inf, 3.0)) is None
    assert safe_phi("float16", (-50.0, 50.0)) is None
    assert safe_phi("float64", (-1.0, 1.0)) is None
