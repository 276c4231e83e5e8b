"""What a graph proves of the scores of an attention: φ is chosen by it."""

from __future__ import annotations

from dataclasses import replace

from overlapc.graphs.attention.matching import Attention
from overlapc.graphs.attention.scores import Bias, Fill, Step, tensors_of
from overlapc.graphs.attention.tensors import is_same
from overlapc.runtime.attention_masks import (
    Added,
    Applied,
    Filled,
    KnownScores,
    input_of,
    known_scores,
)


def scores_of(found: Attention) -> KnownScores:
    """Return what is known of the scores that rows of ``found`` keep."""
    # What only leaves keys out moves no score that is kept.
    masks = () if found.prefix or found.mask.only_leaves_out else found.mask.parts
    dtype = str(found.value.value.dtype).removeprefix("torch.")
    known = known_scores([as_lowered(step) for step in (*found.program, *masks)], dtype)
    # A bias before a function that bounds it moves nothing.
    is_moved = known.phi is None and any(
        isinstance(step, Bias) and _differs_by_head(step) for step in (*found.program, *masks)
    )
    return replace(known, has_sinks=found.sinks is not None, is_moved=is_moved)


def as_lowered(step: Step) -> Added | Filled | Applied:
    """Return a step in the terms of a kernel's program."""
    if isinstance(step, Bias):
        return Added(input_of(step.tensor.value), step.factor)
    if isinstance(step, Fill):
        return Filled(input_of(step.condition.value), step.value, step.is_kept)
    return Applied(step.calls, tuple(input_of(tensor.value) for tensor in tensors_of(step)))


def _differs_by_head(step: Bias) -> bool:
    shape = step.tensor.shape
    return len(shape) > 2 and not is_same((shape[-3],), (1,))
