"""A spec's attention by torch's own ops, score matrix and all: where no kernel can run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.epilogue import Call, Dtype, Ref


def attention_by_torch(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the op does; scores are float32, or float64 where queries are."""
    _, scores, _ = masked_scores(spec, query, key, inputs, lengths)
    weights, scores = weights_of(spec, scores, sinks)
    value = value.repeat_interleave(spec.groups, 1).to(weights.dtype)
    out = (weights[..., : key.shape[2]] @ value).to(query.dtype)
    lse = (
        torch.logsumexp(scores, -1)
        if scores.shape[-1]
        else scores.new_full(scores.shape[:-1], -math.inf)
    )
    return out.transpose(1, 2).contiguous().transpose(1, 2), lse.to(getattr(torch, spec.sums_dtype))


def masked_scores(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the scaled product, scores, and which keys each row sees; None: all of them."""
    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(spec.groups, 1).to(wide)
    product = spec.scale * (query.to(wide) @ key.transpose(-1, -2))
    scores = scores_of(spec, product, inputs)
    rows, keys = scores.shape[-2:]
    seen = seen_by(spec, rows, keys, lengths, scores.device)
    return product, scores if seen is None else scores.masked_fill(~seen, -math.inf), seen


def weights_of(
    spec: AttentionSpec, scores: torch.Tensor, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the softmax, and the scores that it is of: the last column is that of sinks."""
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), -1)
    weights = torch.softmax(scores, -1)
    if spec.dead == "zero":
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return weights, scores


def seen_by(
    spec: AttentionSpec, rows: int, keys: int, lengths: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """Return which keys each row sees, broadcast to [batch, heads, rows, keys]; None: all."""
    key = torch.arange(keys, device=device)
    row = torch.arange(rows, device=device)[:, None]
    end: Any = keys if lengths is None else lengths.reshape(-1, 1, 1, 1)
    own = row + (end - rows) if spec.align == "bottom_right" else row
    parts = []
    if lengths is not None:
        parts.append(key < end)
    if spec.before is not None:
        parts.append(key >= own - spec.before)
    if spec.after is not None:
        parts.append(key <= own + spec.after)
    seen = None
    for part in parts:
        seen = part if seen is None else seen & part
    return seen


def scores_of(
    spec: AttentionSpec, product: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the scores that the program makes of the scaled product, broadcast to both."""
    calls = spec.scores.calls[1:] if spec.scores else ()
    return values_of(calls, [product], inputs)[-1]


OF_TENSORS = (torch.ops.aten.maximum.default, torch.ops.aten.minimum.default)
"""Ops that take no number in place of a tensor."""


def values_of(
    calls: Sequence[Call], given: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the values of a program by torch's ops: those that are given, then one a call."""
    values = list(given)
    for call in calls:
        values.append(_value(call, values, inputs))
    return values


def _value(
    call: Call, values: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    def place(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return (values if argument.kind == "value" else inputs)[argument.index]
        return getattr(torch, argument.name) if isinstance(argument, Dtype) else argument

    overload: Any = torch.ops
    for part in call.op.split("."):
        overload = getattr(overload, part)
    named = {name: place(value) for name, value in call.named}
    placed = map(place, call.arguments)
    if overload in OF_TENSORS:
        placed = (torch.as_tensor(side, dtype=None if torch.is_tensor(side) else torch.float64)
                  for side in placed)  # fmt: skip
    return overload(*placed, **named)
