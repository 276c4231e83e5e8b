"""The gradients of a spec's attention by torch's own ops, score matrix and all."""

from __future__ import annotations

import torch

from overlapc.codegen.attention.derivative import derivative
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.runtime.attention.gradient_operands import GradientOperands
from overlapc.runtime.attention.program import masked_scores, values_of, weights_of


def gradients_by_torch(spec: AttentionSpec, call: GradientOperands) -> list[torch.Tensor]:
    """Return what ``attention_backward`` does, in float32, or float64 where queries are."""
    query, key, inputs, sinks, wanted = call.query, call.key, call.inputs, call.sinks, call.wanted
    product, scores, seen = masked_scores(spec, query, key, inputs, call.lengths)
    weights, _ = weights_of(spec, scores, sinks)
    keys = key.shape[2]
    wide = product.dtype
    slopes = call.slopes.to(wide)
    of_weights = slopes @ call.value.repeat_interleave(spec.groups, 1).to(wide).transpose(-1, -2)
    if sinks is not None:
        of_weights = torch.nn.functional.pad(of_weights, (0, 1))
    delta = (weights * of_weights).sum(-1, keepdim=True)
    if call.sums_slopes is not None:
        delta = delta - call.sums_slopes.to(wide)[..., None]
    of_scores = weights * (of_weights - delta)
    of_sinks = of_scores[..., keys:].sum((0, 2, 3))
    of_scores = of_scores[..., :keys]
    if seen is not None:
        of_scores = of_scores.masked_fill(~seen, 0.0)

    def back(of: int | None = None) -> torch.Tensor:
        if spec.scores is None:
            return of_scores
        return values_of(derivative(spec.scores, of), [product, of_scores], inputs)[-1]

    def of_side(gradient: torch.Tensor) -> torch.Tensor:
        """Of heads of keys, each the sum of those of queries that share it."""
        return gradient.unflatten(1, (-1, spec.groups)).sum(2)

    found: list[torch.Tensor] = []
    if wanted[0]:
        found.append(spec.scale * back() @ key.repeat_interleave(spec.groups, 1).to(wide))
    if wanted[1]:
        found.append(of_side(spec.scale * back().transpose(-1, -2) @ query.to(wide)))
    if wanted[2]:
        found.append(of_side(weights[..., :keys].transpose(-1, -2) @ slopes))
    for index, (tensor, is_wanted) in enumerate(zip(inputs, wanted[3:], strict=False)):
        if is_wanted:
            shape = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
            found.append(back(index).sum_to_size(shape).reshape(tensor.shape))
    return [*found, of_sinks] if wanted[-1] else found
