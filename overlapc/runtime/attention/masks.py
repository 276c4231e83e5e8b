"""What stands between product and softmax as the program of scores that a kernel runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.codegen.attention.bounds import bounds_of, safe_phi
from overlapc.codegen.attention.scores import PRODUCT, scores_text
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.promotion import CannotLower
from overlapc.planning.attention.policy import KnownScores

AtenCall = Call
__all__ = [
    "Added", "Applied", "AtenCall", "AttentionSpec", "CannotLower", "Dtype", "Filled", "Input",
    "KnownScores", "Ref", "input_of", "known_scores", "program_of", "why_not_lowered",
]  # fmt: skip

OF_SHAPE = {(False, False): "matrix", (False, True): "column", (True, False): "vector"}
"""By whether an input of scores has one row, and one key; else it is one number of a head."""


@dataclass(frozen=True)
class Added:
    """``scores + factor * tensor``."""

    tensor: Input
    factor: float = 1.0


@dataclass(frozen=True)
class Filled:
    """``where(condition, scores, value)``, or with the two exchanged."""

    tensor: Input
    """The condition."""
    value: float
    is_kept: bool
    """Scores stay where it is true."""


@dataclass(frozen=True)
class Applied:
    """Calls of which the first value is the score before, and the last the score after."""

    calls: tuple[Call, ...]
    tensors: tuple[Input, ...] = ()


def program_of(steps: Sequence[Added | Filled | Applied]) -> str:
    """Return the text of ``AttentionSpec.program``, steps in the order in which they apply."""
    calls: list[Call] = [PRODUCT]
    inputs: list[Input] = []
    for step in steps:
        applied = step if isinstance(step, Applied) else _applied(step)
        values, before = len(calls) - 1, len(inputs)
        calls += [_renumbered(call, values, before) for call in applied.calls]
        inputs += applied.tensors
    return str(Epilogue(tuple(inputs), tuple(calls))) if steps else ""


def known_scores(
    steps: Sequence[Added | Filled | Applied], dtype: str, product: float = math.inf
) -> KnownScores:
    """Return what ``steps`` on a product of either sign say of scores whose weights are of
    ``dtype``; no scaled product is larger than ``product``."""
    program = program_of(steps)
    calls = Epilogue.parse(program).calls[1:] if program else ()
    least, most = bounds_of(calls, (-product, product))
    return KnownScores(least, most, safe_phi(dtype, (least, most)), product)


def why_not_lowered(calls: Sequence[Call], tensors: Sequence[torch.Tensor]) -> str:
    """Why no kernel can be made of calls as in ``Applied``; empty if one can."""
    inputs = tuple(map(input_of, tensors))
    try:
        scores_text(Epilogue(inputs, (PRODUCT, *calls)))
    except CannotLower as error:
        return f"{error}"
    return ""


def input_of(value: torch.Tensor) -> Input:
    """How a kernel reads a tensor that broadcasts to scores."""
    dtype = str(value.dtype).removeprefix("torch.")
    if value.ndim == 0:
        return Input("scalar", dtype)
    row = value.shape[-2] if value.ndim > 1 else 1
    has_one_row = statically_known_true(row == 1)
    has_one_key = statically_known_true(value.shape[-1] == 1)
    return Input(OF_SHAPE.get((has_one_row, has_one_key), "one"), dtype)


def _applied(mask: Added | Filled) -> Applied:
    score, given = Ref("value", 0), Ref("input", 0)
    if isinstance(mask, Added):
        alpha = (("alpha", mask.factor),) if mask.factor != 1 else ()
        call = Call("aten.add.Tensor", (score, given), alpha)
    elif mask.is_kept:
        call = Call("aten.where.ScalarOther", (given, score, mask.value))
    else:
        call = Call("aten.where.ScalarSelf", (given, mask.value, score))
    return Applied((call,), (mask.tensor,))


def _renumbered(call: Call, values: int, inputs: int) -> Call:
    def place(argument: Any) -> Any:
        if not isinstance(argument, Ref):
            return argument
        shift = values if argument.kind == "value" else inputs
        return Ref(argument.kind, argument.index + shift)

    named = tuple((name, place(value)) for name, value in call.named)
    return Call(call.op, tuple(map(place, call.arguments)), named)
