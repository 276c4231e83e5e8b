"""The masks of an attention as the program of scores that its kernel runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlapc.codegen.attention.scores import PRODUCT
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.epilogue import Call, Epilogue, Input, Ref

__all__ = ["Added", "AttentionSpec", "Filled", "Input", "program_of"]


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


def program_of(masks: Sequence[Added | Filled]) -> str:
    """Return the text of ``AttentionSpec.program``, masks in the order in which they apply."""
    calls = [PRODUCT]
    for index, mask in enumerate(masks):
        score, given = Ref("value", index), Ref("input", index)
        if isinstance(mask, Added):
            alpha = (("alpha", mask.factor),) if mask.factor != 1 else ()
            calls.append(Call("aten.add.Tensor", (score, given), alpha))
        elif mask.is_kept:
            calls.append(Call("aten.where.ScalarOther", (given, score, mask.value)))
        else:
            calls.append(Call("aten.where.ScalarSelf", (given, mask.value, score)))
    inputs = tuple(mask.tensor for mask in masks)
    return str(Epilogue(inputs, tuple(calls))) if masks else ""
