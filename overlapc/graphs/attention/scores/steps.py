"""What is done to the scores of an attention between product and softmax, as records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from overlapc.graphs.attention.reading.tensors import Expression
from overlapc.graphs.attention.scores.functions import Function


@dataclass(frozen=True)
class Bias:
    """``scores + factor * tensor``, in terms of what the softmax reads."""

    tensor: Expression
    factor: float


@dataclass(frozen=True)
class Fill:
    """``where(condition, scores, value)``, or with the two exchanged."""

    condition: Expression
    value: float
    """In terms of what the softmax reads."""
    is_kept: bool
    """Scores stay where ``condition`` is true."""


Step = Bias | Fill | Function
"""What is done to scores, each with its tensors in the batch dimensions of ``Scores.frame``."""


def tensors_of(step: Step) -> tuple[Expression, ...]:
    """The tensors that a step takes beside scores."""
    if isinstance(step, Function):
        return step.inputs
    return (step.tensor,) if isinstance(step, Bias) else (step.condition,)


def with_tensors(step: Step, change: Callable[[Expression], Expression]) -> Step:
    """Return a step on what ``change`` makes of its tensors."""
    if isinstance(step, Function):
        return replace(step, inputs=tuple(map(change, step.inputs)))
    if isinstance(step, Bias):
        return replace(step, tensor=change(step.tensor))
    return replace(step, condition=change(step.condition))
