"""Masks that functions of scores stand behind, or a shift by the maximum and then other masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from overlapc.graphs.attention.masks.combined import why_half
from overlapc.graphs.attention.masks.finite import is_finite
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias, Fill, Step
from overlapc.graphs.attention.scores.upward import Scores
from overlapc.graphs.collectives import Refusal
from overlapc.planning.attention.library_calls import FAINT


def why_not_early(versions: Versions, scores: Scores) -> Refusal | None:
    """Return why a row that a mask leaves no key would give other numbers than eager's."""
    for mask in _finite_ones(scores.before_shift):
        if not is_finite(versions, mask, -FAINT):
            reason = "Its scores are less their row's largest between two masks, which leaves "
            reason += "nothing of a finite one that hides all of a row: without it they are read."
            return Refusal(scores.nodes[-1], "dead_rows", reason)
    halves = (why_half(versions, mask) for mask in _finite_ones(scores.program))
    return next(filter(None, halves), None)


def may_be_even(scores: Scores) -> bool:
    """As of ``Mask``, by masks that functions stand behind."""
    return bool(_finite_ones(scores.program))


def _finite_ones(steps: Sequence[Step]) -> list[Bias | Fill]:
    masks = [step for step in steps if isinstance(step, Bias | Fill)]
    return [mask for mask in masks if not isinstance(mask, Fill) or mask.value > -math.inf]
