"""Which keys some rows see, and whether products of so many are computed on a processor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.planning.attention.by_rows import ROWS_AT_A_TIME, has_heads, takes_products
from overlapc.runtime.attention.library_masks import has_part, without_keys
from overlapc.runtime.attention.products import attention_by_products

LOOKED_THROUGH = 8
"""Scores for each number of a mask from which on it is looked through; chosen."""


def by_products(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    is_causal: bool,
) -> torch.Tensor | None:
    """Return the attention by products of some rows at a time; None where torch's fused one is
    faster. What is masked is told as by ``library_masks.told``."""
    if query.device.type != "cpu" or not (is_causal or mask is not None):
        return None
    is_added = mask is not None and mask.dtype != torch.bool  # in float32, whatever scores are
    if query.dtype != torch.float32 and (is_added or not spec.rounds):
        return None
    if not has_heads(key.shape[1], spec.groups, torch.get_num_threads()):
        return None
    call = (str(query.dtype).removeprefix("torch."), spec.head_dim, spec.groups, query.shape[2])
    if not takes_products(*call, 0.0, is_causal=is_causal):
        return None  # however few are seen
    if mask is not None:
        mask = mask[(None,) * (query.dim() - mask.dim())]
    spans = spans_of(query, key, value, mask)
    seen = sum(end - begin for begin, end in spans) / (len(spans) * key.shape[2])
    if not takes_products(*call, seen, is_causal=is_causal):
        return None
    out = attention_by_products(query, key, value, spec.scale, mask, spans)
    if mask is None or spec.dead != "zero":
        return out
    return out.masked_fill_(without_keys(mask), 0.0)


def spans_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> list[tuple[int, int]]:
    """Return between which keys all are that some rows see, for each ``ROWS_AT_A_TIME``. A mask is
    of as many dimensions as the rest; None: it is causal."""
    rows, keys = query.shape[2], key.shape[2]
    starts = range(0, rows, ROWS_AT_A_TIME)
    if mask is None:
        return [(0, min(start + ROWS_AT_A_TIME, keys)) for start in starts]
    is_small = LOOKED_THROUGH * mask.numel() <= query.shape[0] * query.shape[1] * rows * keys
    # Hidden keys that are no numbers make rows NaN, as they do in eager.
    if not is_small or not (_is_finite(key) and _is_finite(value)):
        return [(0, keys)] * len(starts)
    kept = (mask if mask.dtype == torch.bool else has_part(mask)).flatten(0, 1)
    blocks = F.pad(kept, (0, 0, 0, -rows % ROWS_AT_A_TIME)).unflatten(1, (-1, ROWS_AT_A_TIME))
    seen = blocks.any(2).any(0).byte()
    first, beyond = seen.argmax(1), keys - seen.flip(1).argmax(1)
    found = zip(seen.any(1).tolist(), first.tolist(), beyond.tolist(), strict=True)
    return [(begin, end) if is_any else (0, keys) for is_any, begin, end in found]


def _is_finite(side: torch.Tensor) -> bool:
    return math.isfinite(float(side.sum(dtype=torch.promote_types(side.dtype, torch.float32))))
