"""A tensor that scores are multiplied by, one number of each head: rows of queries can be first.

Torch's attention takes a number for scale. In float32 both products are alike but for rounding;
in narrower dtypes queries would be rounded once more than in eager. The scale's own gradient would
be a sum over rows of queries in place of scores, which lost a digit at scores of 40.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from overlapc.graphs.attention.reading.tensors import Expression, is_same
from overlapc.graphs.attention.scores.functions import Function
from overlapc.graphs.attention.scores.steps import Step
from overlapc.runtime.attention.masks import Ref


@dataclass(frozen=True)
class TensorScale:
    """``factor * tensor * scores``, or ``factor * scores / tensor``."""

    tensor: Expression
    """It broadcasts to ``[batch, heads, 1, 1]``."""
    factor: float
    divides: bool


def tensor_scale(program: tuple[Step, ...], query: Expression) -> TensorScale | None:
    """Return the scale that is all that a program does to scores; None where it does more,
    ``query`` is not float32, or the scale is trained."""
    if len(program) != 1 or not isinstance(step := program[0], Function) or len(step.inputs) != 1:
        return None
    (tensor,), (first, *rest) = step.inputs, step.calls
    score, given = Ref("value", 0), Ref("input", 0)
    divides = first.op == "aten.div.Tensor" and first.arguments == (score, given)
    is_product = first.op == "aten.mul.Tensor" and set(first.arguments) == {score, given}
    factors = [call.arguments[1] for call in rest if call.op == "aten.mul.Tensor"]
    is_scaled = len(rest) == len(factors) <= 1 and all(isinstance(x, float) for x in factors)
    last = tensor.shape[-2:]
    is_of_heads = is_same(last, (1,) * len(last))
    is_float32 = tensor.value.dtype == query.value.dtype == torch.float32
    is_trained = torch.is_grad_enabled() and tensor.value.requires_grad
    if not (divides or is_product) or not (is_scaled and is_of_heads and is_float32) or is_trained:
        return None
    return TensorScale(tensor, factors[0] if factors else 1.0, divides)
