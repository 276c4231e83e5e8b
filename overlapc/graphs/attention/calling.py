"""What a call of ``F.scaled_dot_product_attention`` says beside its queries, keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.graphs.attention.masks.combined import Mask, read_mask
from overlapc.graphs.attention.reading.spelling import Call
from overlapc.graphs.attention.reading.tensors import Expression, expression, is_same
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias, Fill
from overlapc.graphs.attention.weights import why_dropped
from overlapc.graphs.collectives import Refusal


@dataclass(frozen=True)
class Said:
    """In the terms of ``Attention``."""

    scale: float
    mask: Mask
    groups: int
    """Heads of queries that the call itself lets share one of keys, by its flag or a broadcast."""


def read_arguments(
    versions: Versions, call: Call, query: Expression, key: Expression
) -> Said | Refusal:
    """Read a call whose operands are ``query`` and ``key``, of as many dimensions and not empty."""
    scale = call.get("scale")
    if dropped := why_dropped(versions, call, call.get("dropout_p", 0.0)):
        return dropped
    dim = query.shape[-1]
    if not isinstance(dim, int):
        reason = "The size of its heads varies, and a kernel is made for one."
        return Refusal(call.node, "symbolic_layout", reason)
    if scale is not None and not isinstance(scale, int | float):
        return Refusal(call.node, "computed_scale", "Its scale is computed in the graph.")
    is_one_for_all = len(key.shape) == 4 and is_same(key.shape[1:2], (1,))
    is_grouped = is_one_for_all or call.get("enable_gqa") is True
    groups = _groups(query, key) if is_grouped else 1
    shared = -3 if groups > 1 else -2
    if not groups or not is_same(key.shape[:shared], query.shape[:shared]):
        reason = "Its queries and keys have batches or heads that broadcast."
        return Refusal(call.node, "batch_dims", reason)
    mask = _mask(versions, call, query, key)
    if isinstance(mask, Refusal):
        return mask
    return Said(float(scale) if scale is not None else 1 / math.sqrt(dim), mask, groups)


def _groups(query: Expression, key: Expression) -> int:
    if len(query.shape) != 4 or len(key.shape) != 4:
        return 1 if is_same(query.shape[:-2], key.shape[:-2]) else 0
    heads, shared = query.shape[1], key.shape[1]
    if not isinstance(heads, int) or not isinstance(shared, int) or heads % max(shared, 1):
        return 0
    return heads // max(shared, 1)


def _mask(versions: Versions, call: Call, query: Expression, key: Expression) -> Mask | Refusal:
    given, is_causal = call.get("attn_mask"), call.get("is_causal", False)
    if not isinstance(is_causal, bool) or (is_causal and given is not None):
        return Refusal(call.node, "mask_dtype", "It is causal by what is computed, or masked too.")
    if given is None:
        return Mask((), "causal" if is_causal else "nothing", "", False)
    tensor = expression(versions, call.node, given) if isinstance(given, fx.Node) else None
    if tensor is None:
        reason = "Its mask is no tensor, or was written through another view."
        return Refusal(call.node, "hidden_write", reason)
    is_kept = tensor.value.dtype == torch.bool
    low = versions.casts_to(call.node)
    if low is not None and not is_kept:
        tensor = tensor.cast(low)  # as its operands
    part = Fill(tensor, -math.inf, is_kept=True) if is_kept else Bias(tensor, 1.0)
    dtype = low or query.value.dtype
    mask = read_mask(versions, (part,), dtype, query.shape[-2], key.shape[-2])
    if isinstance(mask, Refusal):
        return mask
    # Rows without a key are zeros in torch's attention, where softmax gives NaN.
    return replace(mask, dead="zero" if mask.dead == "nan" else mask.dead)
