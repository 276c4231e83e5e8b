"""An attention of a spec by torch's fused one, where that can say the same.

On processors it reads the keys that a cache holds and no others: their number is at hand there. On
GPUs to ask for it would wait for the device, so there lengths become a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.epilogue import Call, Ref
from overlapc.planning.attention.fills import FINITE_FILL, WEAKEST_FILL
from overlapc.runtime.attention.by_rows import by_products
from overlapc.runtime.attention.library_masks import (
    ADDS,
    FILLS,
    cut_by_mask,
    fill_of,
    told,
    without_keys,
)
from overlapc.runtime.attention.with_sums import fused_with_sums


def why_not_fused(spec: AttentionSpec, device: str) -> str:
    """Return why torch's fused attention cannot compute a spec on a type of device; empty if it
    can."""
    if spec.sinks and device != "cpu":
        return "a sink takes part in the softmax"
    is_padded = device == "cpu" and spec.value_dim < spec.head_dim
    if spec.head_dim != spec.value_dim and not is_padded:
        return f"heads of {spec.head_dim} meet values of {spec.value_dim}"
    calls = spec.scores.calls[1:] if spec.scores else ()
    others = {call.op for index, call in enumerate(calls) if not _is_mask(call, index)}
    if others:
        return f"{min(others)} changes its scores"
    *before, last = (fill_of(call) for call in calls) if calls else (None,)
    scores = [value for value in before if value is not None and value > FINITE_FILL]
    scores += [last] if last is not None and last > WEAKEST_FILL else []
    return f"{scores[0]} is put in for scores" if scores else ""


def _is_mask(call: Call, index: int) -> bool:
    """Whether a call adds something to scores of value ``index``, or puts something in for them."""
    score = Ref("value", index)
    values = [x for x in call.arguments if isinstance(x, Ref) and x.kind == "value"]
    return call.op in (ADDS, *FILLS) and values == [score]


def attention_by_fused(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the result, rows before heads in memory; ``why_not_fused`` has to be empty."""
    on_processor = query.device.type == "cpu"
    if not (query.numel() and key.numel()):
        # A sum of nothing is zero, where torch's fused attention over no key is NaN.
        batch, heads, rows, _ = query.shape
        return query.new_zeros((batch, rows, heads, value.shape[-1])).transpose(1, 2)
    if lengths is not None and on_processor:
        key, value, inputs, lengths = _cut(key, value, inputs, lengths)
    is_causal, mask = told(spec, query, key.shape[2], inputs, lengths)
    found = (
        by_products(spec, query, key, value, mask, is_causal=is_causal) if sinks is None else None
    )
    if found is not None:
        return found
    if on_processor and mask is not None and spec.program and lengths is None:
        key, value, mask = cut_by_mask(key, value, mask)
    columns, missing = value.shape[-1], key.shape[-1] - value.shape[-1]
    value = F.pad(value, (0, missing)) if missing else value  # its kernel has one number of columns
    out = _fused(
        spec, query, key, value, mask, sinks, is_causal=is_causal, takes_masked_groups=on_processor
    )
    return out[..., :columns].transpose(1, 2).contiguous().transpose(1, 2) if missing else out


def _fused(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    sinks: torch.Tensor | None = None,
    *,
    is_causal: bool,
    takes_masked_groups: bool,
) -> torch.Tensor:
    if sinks is not None:
        out, _ = fused_with_sums(query, key, value, mask, spec.scale, sinks, is_causal=is_causal)
        absent = sinks == -math.inf
        if mask is None or spec.dead != "nan" or not absent.any():
            return out
        return out.masked_fill(without_keys(mask) & absent[:, None, None], math.nan)
    takes_groups = takes_masked_groups or mask is None
    if not takes_groups:
        key, value = (side.repeat_interleave(spec.groups, 1) for side in (key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=spec.scale,
        enable_gqa=takes_groups and spec.groups > 1,
    )  # fmt: skip
    if mask is not None and spec.dead == "nan":
        out = out.masked_fill(without_keys(mask), math.nan)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _cut(
    key: torch.Tensor, value: torch.Tensor, inputs: Sequence[torch.Tensor], lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor], torch.Tensor | None]:
    """Operands up to the longest sequence; without lengths where all are as long.

    At least one key stays, so that it is a mask that leaves it out.
    """
    keys, known = key.shape[2], lengths.tolist()
    longest = max(min(max(known), keys), 1)
    key, value = (side[:, :, :longest] for side in (key, value))
    inputs = [x[..., :longest] if x.dim() and x.shape[-1] == keys else x for x in inputs]
    is_whole = all(length == longest for length in known)
    return key, value, inputs, None if is_whole else lengths
