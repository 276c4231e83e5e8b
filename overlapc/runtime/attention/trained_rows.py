"""An attention of which gradients are wanted, by torch's fused one for processors.

Where its mask leaves a row no key that has other gradients than eager (see ``FAINT``). A call that
has such a row is left to others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.planning.attention.library_calls import FAINT
from overlapc.runtime.attention.gradient_operands import GradientOperands
from overlapc.runtime.attention.library import mask_of, why_not_fused

aten = torch.ops.aten


def forward_by_fused(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return what the op does, its logarithms among it; None where it is not to be computed so."""
    said = _masked(spec, query, key, inputs)
    if said is None:
        return None
    sides = _sides(spec, query, key, value)
    out, sums = aten._scaled_dot_product_flash_attention_for_cpu(
        *sides, 0.0, False, attn_mask=said[0], scale=spec.scale
    )
    return out.transpose(1, 2).contiguous().transpose(1, 2), sums.float().contiguous()


def gradients_by_fused(spec: AttentionSpec, call: GradientOperands) -> list[torch.Tensor] | None:
    """Return what ``attention_backward`` does; None where it is not to be computed so."""
    is_more = call.lengths is not None or call.sums_slopes is not None or any(call.wanted[3:])
    said = None if is_more else _masked(spec, call.query, call.key, call.inputs)
    if said is None:
        return None
    sides = _sides(spec, call.query, call.key, call.value)
    gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        call.slopes, *sides, call.out, call.sums, 0.0, False, attn_mask=said[0], scale=spec.scale
    )
    heads = (1, spec.groups, spec.groups)
    whole = [
        side if count == 1 else side.unflatten(1, (-1, count)).sum(2)
        for side, count in zip(gradients, heads, strict=True)
    ]
    return [side for side, is_wanted in zip(whole, call.wanted, strict=False) if is_wanted]


def _masked(
    spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None] | None:
    """What is added to scores, where every row keeps a key; None where one does not."""
    is_served = query.device.type == "cpu" and query.numel() and key.numel()
    if not is_served or spec.lengths or why_not_fused(spec):
        return None
    mask = mask_of(spec, query, key.shape[2], inputs, None)
    if mask is None:
        return (None,)
    kept = mask if mask.dtype == torch.bool else ~(mask <= FAINT)
    if not bool(kept.any(-1).all()):
        return None
    if mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return (mask if mask.stride(-1) == 1 else mask.contiguous(),)


def _sides(spec: AttentionSpec, *sides: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values as the kernel takes them: as many heads, columns side by side."""
    query, *cache = sides
    if spec.groups > 1:
        cache = [side.repeat_interleave(spec.groups, 1) for side in cache]
    return [side if side.stride(-1) == 1 else side.contiguous() for side in (query, *cache)]
