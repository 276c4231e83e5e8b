"""Scores that are raised to a number below all scores: ``max(scores + mask, finfo.min)``.

It leaves what a row keeps as it is, and no key of a row that keeps none at minus infinity.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from overlapc.graphs.attention.masks.finite import is_finite
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.functions import Function
from overlapc.graphs.attention.scores.steps import Bias, Fill, Step
from overlapc.graphs.attention.scores.upward import Scores
from overlapc.planning.attention.fills import FINITE_FILL
from overlapc.planning.attention.library_calls import FAINT
from overlapc.runtime.attention.masks import Ref

FLOORS = ("aten.maximum.default", "aten.clamp.default", "aten.clamp_min.default")


def without_floor(versions: Versions, scores: Scores) -> Scores | None:
    """Return scores whose masks are raised in place of them; None where no floor is the last
    function of scores, or that would say something else.

    Gradients of rows that keep no key are others: a floor takes some of them, or all.
    """
    if not scores.program:
        return None
    *before, last = scores.program
    floor = _floor_of(last)
    if floor is None:
        return None
    functions = [at for at, step in enumerate(before, 1) if isinstance(step, Function)]
    end = functions[-1] if functions else 0
    masks = [step for step in before[end:] if not isinstance(step, Function)]
    hiding = [mask for mask in masks if not is_finite(versions, mask, -FAINT)]
    if len(hiding) > 1:  # two that are raised add up to less than the floor
        return None
    if not all(_holds(mask, floor) for mask in hiding):
        return None
    raised = [_raised(mask, floor) if mask in hiding else mask for mask in masks]
    return replace(scores, program=tuple(before[:end]), masks=(*raised, *scores.masks))


def _floor_of(step: Step) -> float | None:
    if not isinstance(step, Function) or len(step.calls) != 1:
        return None
    (call,) = step.calls
    first, *numbers = (*call.arguments, *(value for _, value in call.named))
    numbers = [number for number in numbers if number is not None]
    is_floor = call.op in FLOORS and first == Ref("value", 0) and len(numbers) == 1
    if not is_floor or not isinstance(numbers[0], int | float):
        return None
    is_below = math.isfinite(numbers[0]) and numbers[0] <= FINITE_FILL
    return float(numbers[0]) if is_below else None


def _holds(mask: Bias | Fill, floor: float) -> bool:
    """Whether a floor is a number of the mask's own dtype, or nearly."""
    if isinstance(mask, Fill):
        return True
    own = mask.tensor.value.dtype
    return own.is_floating_point and torch.finfo(own).min <= floor


def _raised(mask: Bias | Fill, floor: float) -> Bias | Fill:
    if isinstance(mask, Fill):
        return replace(mask, value=max(mask.value, floor))
    tensor = mask.tensor if mask.factor == 1 else mask.tensor.then(torch.mul, mask.factor)
    return Bias(tensor.then(torch.clamp, floor), 1.0)
