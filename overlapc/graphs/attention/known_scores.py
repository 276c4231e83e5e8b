"""What a graph proves of the scores of an attention: φ is chosen by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from overlapc.graphs.attention.norm_bounds import product_bound
from overlapc.graphs.attention.norms.lengths import Norms
from overlapc.graphs.attention.reading.tensors import is_same
from overlapc.graphs.attention.scores.steps import Bias, Fill, Step, tensors_of
from overlapc.graphs.attention.site import Attention
from overlapc.runtime.attention.masks import (
    Added,
    Applied,
    Filled,
    KnownScores,
    input_of,
    known_scores,
)


def scores_of(found: Attention, weights: Mapping[fx.Node, torch.Tensor]) -> KnownScores:
    """Return what is known of the scores that rows of ``found`` keep.

    ``weights`` are what inputs of the graph hold now, as far as they are parameters.
    """
    # What only leaves keys out moves no score that is kept.
    masks = () if found.prefix or found.mask.only_leaves_out else found.mask.parts
    dtype = str(found.value.value.dtype).removeprefix("torch.")
    product, why = product_bound(found, weights)
    steps = [as_lowered(step) for step in (*found.program, *masks)]
    known = known_scores(steps, dtype, product)
    # A bias before a function that bounds it moves nothing.
    is_moved = known.phi is None and any(
        isinstance(step, Bias) and _differs_by_head(step) for step in (*found.program, *masks)
    )
    has_sinks = found.sinks is not None
    is_cached = isinstance(found.norms, Norms) and found.norms.key.is_cached
    return replace(
        known,
        has_sinks=has_sinks,
        is_moved=is_moved,
        why_no_norms=why,
        is_cached=is_cached,
        may_be_none=found.mask.dead not in ("", "zero"),
    )


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
