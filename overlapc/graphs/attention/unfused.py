"""Why a call of torch's attention on a processor is not computed by its fused kernel.

Torch itself says so of tensors that hold something alone (``torch._fused_sdp_choice``): of those
without, and before autograd, its conditions are told here, and a test compares the two.
"""

from __future__ import annotations

import torch
from torch import fx

from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import Expression
from overlapc.graphs.values import hint_of
from overlapc.runtime.planned_devices import planned_device

BROADCASTS = "its heads or batches are of different numbers"


def why_unfused(call: Call, query: Expression, key: Expression, value: Expression) -> str:
    """Return why torch multiplies, takes a softmax and multiplies again, as a clause; empty where
    it does not, and on other devices than processors."""
    if planned_device(query.value.device.type) != "cpu":
        return ""
    sides = (query, key, value)
    if any(len(side.shape) != 4 for side in sides):
        return f"its operands have {len(query.shape)} dimensions, and no batch and heads"
    (batch, heads, rows, dim), others, of_values = ([*map(hint_of, s.shape)] for s in sides)
    is_grouped = call.get("enable_gqa") is True and not heads % max(others[1], 1)
    is_alike = others[:2] == of_values[:2] and batch == others[0]
    if not is_alike or (heads != others[1] and not is_grouped):
        return BROADCASTS
    if dim != of_values[-1]:
        return f"heads of {dim} meet values of {of_values[-1]}"
    if any(hint_of(side.value.stride(-1)) != 1 for side in sides):
        return "an operand's last dimension is strided"
    mask = call.get("attn_mask")
    given = tensor_of(mask) if isinstance(mask, fx.Node) else None
    return "" if given is None else _why_of_mask(given, [batch, heads, rows, others[-2]])


def _why_of_mask(mask: torch.Tensor, scores: list[int]) -> str:
    if mask.requires_grad:  # where none is recorded as well
        return "its mask requires a gradient"
    if mask.ndim not in (2, 4):
        return f"its mask has {mask.ndim} dimensions, where 2 or 4 are taken"
    sizes = [*map(hint_of, mask.shape)]
    own = scores[-mask.ndim :]
    fits = all(size in (1, most) for size, most in zip(sizes, own, strict=True))
    return "" if fits else "its mask broadcasts to more than its scores"
