"""Which programs of scores may make some that are infinite in units of log 2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.far_scores import nearer_of
from overlapc.codegen.epilogue import Epilogue
from tests.codegen import score_programs as programs
from tests.codegen.score_programs import program

ADDED = Epilogue.parse(programs.ADDED)
NO_WAY, DOWN, BOTH = (), ("raised",), ("raised", "lowered")
MASK = "matrix:float32"
FILLED = ("where.ScalarOther", "@0", "%0", -3.4e38)
PLACES = {
    "products": (programs.SOFT_CAP, NO_WAY),
    "a factor": (program(MASK, ("mul.Tensor", "%0", "@0")), NO_WAY),
    "a divisor": (program(MASK, ("div.Tensor", "%0", "@0")), NO_WAY),
    "a mask that is bounded": (program(MASK, FILLED, ("tanh.default", "%1")), NO_WAY),
    "a small number": (program("", ("add.Scalar", "%0", -1e38)), NO_WAY),
    "a mask": (programs.ADDED, DOWN),
    "a mask of booleans": (programs.KEPT, DOWN),
    "a number by the score": (programs.LEAST_BY_SCORE, DOWN),
    "a mask that scores are no more than": (program(MASK, ("minimum.default", "%0", "@0")), DOWN),
    "a mask that is turned": (programs.TURNED, BOTH),
    "a mask of the largest number": (
        program("matrix:bool", ("where.ScalarOther", "@0", "%0", 3.4e38)), BOTH,
    ),
    "a mask that is taken off": (program(MASK, ("sub.Tensor", "%0", "@0")), BOTH),
    "a mask, less scores": (program(MASK, ("rsub.Tensor", "%0", "@0")), BOTH),
    "a mask times another tensor": (
        program(f"{MASK} scalar:float32", ("addcmul.default", "%0", "@0", "@1")), BOTH,
    ),
    "most of a mask": (program(MASK, ("lerp.Scalar", "%0", "@0", 0.9)), BOTH),
    "bounds that are masks": (program(MASK, ("clamp.Tensor", "%0", "@0")), BOTH),
    "bounds as far as masks": (
        program(MASK, FILLED, ("hardtanh.default", "%1", -3.4e38, 0.0)), BOTH,
    ),
    "a mask that is multiplied first": (
        program(MASK, ("mul.Tensor", "@0", 2.0), ("add.Tensor", "%0", "%1")), BOTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_places(name):
    """Mutants: each name of ``BOUNDED``, ``FACTORS`` and ``EXTREMES`` that a line here reads; any
    call of an input is a factor; numbers above zero are low."""
    spelled, places = PLACES[name]
    assert nearer_of(Epilogue.parse(spelled)) == places


def test_a_mask_that_is_added_several_times():
    """Mutant: ``alpha`` is not looked at."""
    product, call = ADDED.calls
    twice = replace(call, named=(("alpha", 2.0),))
    assert nearer_of(replace(ADDED, calls=(product, twice))) == BOTH
