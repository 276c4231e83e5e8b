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
BOUNDED = ("tanh", "sigmoid", "sin", "cos", "erf")
FACTORS = ("mul", "div")
"""What a product takes a tensor into without it being a mask."""
EXTREMES = ("minimum", "maximum")


def nearer_of(program: Epilogue) -> tuple[str, ...]:
    """Names of what ``templates/score_inputs.py`` has to do with the last value."""
    values = [NEAR]
    for call in program.calls[1:]:
        values.append(_place(call, values))
    return ((), ("raised",), ("raised", "lowered"))[values[-1]]


def _place(call: Call, values: Sequence[int]) -> int:
    name = call.op.split(".")[1]
    given = [*call.arguments, *(argument for _, argument in call.named)]
    has_input = any(isinstance(side, Ref) and side.kind == "input" for side in given)
    before = max((values[side.index] for side in given if _is_value(side)), default=LOW)
    numbers = [_place_of_number(side) for side in given if isinstance(side, int | float)]
    if name in BOUNDED:
        return NEAR
    if is_mask(call) and not call.named:
        return max(before, LOW if has_input else NEAR, *numbers)
    if before or any(numbers):
        return FAR
    if not has_input or name in FACTORS:
        return NEAR
    return LOW if name in EXTREMES else FAR


def _is_value(side: object) -> bool:
    return isinstance(side, Ref) and side.kind == "value"


def _place_of_number(number: float) -> int:
    if not FARTHEST_NUMBER < abs(number) < math.inf:
        return NEAR
    return LOW if number < 0 else FAR
