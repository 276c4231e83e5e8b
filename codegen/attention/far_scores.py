"""Whether scores may be so far from zero that they are infinite in units of log 2.

Masks of the least number are, and what becomes of such a mask that is multiplied, or taken from
something; products are taken to be nearer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from overlapc.codegen.attention.visibility import is_mask
from overlapc.codegen.epilogue import Call, Epilogue, Ref

NEAR, LOW, FAR = range(3)
"""Of a value: not far from zero; perhaps as far below it as a mask; on either side."""
FARTHEST_NUMBER = 2e38
BOUNDED = ("tanh", "sigmoid", "sin", "cos", "erf", "hardtanh")


def nearer_of(program: Epilogue) -> tuple[str, ...]:
    """Names of what ``templates/score_inputs.py`` has to do with the last value."""
    values = [NEAR]
    for call in program.calls[1:]:
        values.append(_place(call, values))
    return ((), ("raised",), ("raised", "lowered"))[values[-1]]


def _place(call: Call, values: Sequence[int]) -> int:
    name = call.op.split(".")[1]
    given = [*call.arguments, *(argument for _, argument in call.named)]
    inputs = [side for side in given if isinstance(side, Ref) and side.kind == "input"]
    before = max((values[side.index] for side in given if _is_value(side)), default=LOW)
    if name in BOUNDED:
        return NEAR
    if name == "sub" and inputs:
        return FAR
    if is_mask(call) and not call.named:
        is_low = bool(inputs) or any(map(_is_far, given))
        return max(before, LOW if is_low else NEAR)
    has_mask = name in ("minimum", "maximum") and inputs
    return FAR if before or any(map(_is_far, given)) else LOW if has_mask else NEAR


def _is_value(side: object) -> bool:
    return isinstance(side, Ref) and side.kind == "value"


def _is_far(side: object) -> bool:
    return isinstance(side, int | float) and FARTHEST_NUMBER < abs(side) < math.inf
