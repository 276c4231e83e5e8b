"""The decode kernel scales products when a maximum has been taken off them, as all kernels do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen.catching import wrong_values

SPEC = AttentionSpec("float32", 32, 32, groups=3, scale=1.0)
CASE = {"offset": 3e38, "factor": 1e36}
"""Products near the largest number: multiplied by 1.44, for ``exp2``, they are infinite."""
NO_CONSTANT = ("scale: tl.constexpr = SCALE", "scale = SCALE")
"""A mutant: a variable that is not declared as a constant is a number, read on the device."""


@pytest.mark.parametrize(("softmax", "redone"), [("zero", 6), ("online", None)])
def test_products_near_the_largest_number(interpreted, softmax, redone):
    call = ("decode_cases.call", "run", str(replace(SPEC, softmax=softmax)), str(Cache()))
    interpreted(*call, {**CASE, "redone": redone})
    with wrong_values():
        interpreted(*call, {**CASE, "redone": redone}, mutate=[NO_CONSTANT])
