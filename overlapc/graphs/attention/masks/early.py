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
    if _hiding(versions, scores.before_shift):
        reason = "Its scores are less their row's largest between two masks, which leaves nothing "
        reason += "of a finite one that hides all of a row: without it they are read."
        return Refusal(scores.nodes[-1], "dead_rows", reason)
    halves = (why_half(versions, mask) for mask in _hiding(versions, scores.program))
    return next(filter(None, halves), None)


def may_be_even(versions: Versions, scores: Scores) -> bool:
    """As of ``Mask``, by masks that functions stand behind."""
    return bool(_hiding(versions, scores.program))


def _hiding(versions: Versions, steps: Sequence[Step]) -> list[Bias | Fill]:
    """Those finite masks among these that may hide keys."""
    masks = [step for step in steps if isinstance(step, Bias | Fill)]
    finite = [mask for mask in masks if not isinstance(mask, Fill) or mask.value > -math.inf]
    return [mask for mask in finite if not is_finite(versions, mask, -FAINT)]
