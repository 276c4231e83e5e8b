"""What a generated attention must give, in float64 and one head at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.epilogue import Dtype, Ref


def attention(
    spec: AttentionSpec,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    inputs: Sequence[torch.Tensor] = (),
    lengths: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result and the logarithms of sums, by eager softmax over whole rows of scores, in
    ``dtype``.

    Shares with the kernels neither their masks nor the lowering of scores.
    """
    q, k, v = (side.to(dtype) for side in (q, k, v))
    k, v = (side.repeat_interleave(spec.groups, 1) for side in (k, v))
    scores = spec.scale * (q @ k.transpose(-1, -2))
    inputs = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs]
    scores = evaluate(spec, scores, inputs)
    scores = scores.masked_fill(~visible(spec, q, k, lengths), -math.inf)
    if sinks is not None:
        column = sinks.to(dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), -1)
    is_dead = (scores == -math.inf).all(-1, keepdim=True)
    if spec.dead == "nan":
        weights = torch.softmax(scores, -1)
    else:  # as torch's fused attention, of gradients too
        weights = torch.softmax(scores.masked_fill(is_dead, 0.0), -1).masked_fill(is_dead, 0.0)
    # Torch's own gradient of it is exp(score - lse), one for each key of a row of masks alone: that
    # logarithm has lost how many they are. Here it is a weight.
    peak = scores.detach().amax(-1) if scores.shape[-1] else scores.new_zeros(scores.shape[:-1])
    peak = torch.where(peak.isfinite(), peak, 0.0)
    return weights[..., : k.shape[2]] @ v, torch.logsumexp(scores - peak[..., None], -1) + peak


def visible(
    spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, lengths: torch.Tensor | None
) -> torch.Tensor:
    """Which keys each row sees, [batch, heads, rows, keys], counted one by one."""
    batch, heads, rows, keys = *q.shape[:3], k.shape[2]
    seen = torch.zeros(batch, heads, rows, keys, dtype=torch.bool)
    for b in range(batch):
        end = keys if lengths is None else int(lengths[b])
        for r in range(rows):
            own = r if spec.align == "top_left" else end - (rows - r)
            for key in range(min(end, keys)):
                early = spec.before is not None and key < own - spec.before
                late = spec.after is not None and key > own + spec.after
                seen[b, :, r, key] = not (early or late)
    return seen


def evaluate(
    spec: AttentionSpec, product: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Scores by torch's own ops, in the dtype of the product, as numbers among the inputs are."""
    if spec.scores is None:
        return product
    values = [product]
    for call in spec.scores.calls[1:]:

        def place(argument: Any, values: Sequence[torch.Tensor] = values) -> Any:
            if isinstance(argument, Ref):
                return (values if argument.kind == "value" else inputs)[argument.index]
            return getattr(torch, argument.name) if isinstance(argument, Dtype) else argument

        overload: Any = torch.ops
        for part in call.op.split("."):
            overload = getattr(overload, part)
        named: Mapping[str, Any] = {name: place(value) for name, value in call.named}
        value = overload(*map(place, call.arguments), **named)
        values.append(value.to(product.dtype) if value.is_floating_point() else value)
    return values[-1]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
