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
from overlapc.runtime.attention.library import why_not_fused
from overlapc.runtime.attention.library_masks import mask_of
from overlapc.runtime.attention.with_sums import added, fused_with_sums, side_by_side

aten = torch.ops.aten


def forward_by_fused(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return what the op does, its logarithms among it; None where it is not to be computed so."""
    said = _masked(spec, query, key, inputs)
    return None if said is None else fused_with_sums(query, key, value, *said, spec.scale, sinks)


def gradients_by_fused(spec: AttentionSpec, call: GradientOperands) -> list[torch.Tensor] | None:
    """Return what ``attention_backward`` does; None where it is not to be computed so."""
    of_inputs = call.wanted[3:-1]
    is_more = call.lengths is not None or call.sums_slopes is not None or any(of_inputs)
    said = None if is_more else _masked(spec, call.query, call.key, call.inputs)
    if said is None:
        return None
    sides = _sides(spec, call.query, call.key, call.value)
    # Weights are made again from the logarithms: those of sums with a sink are what they are.
    gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        call.slopes, *sides, call.out, call.sums.float(), 0.0, False,
        attn_mask=added(call.query, *said), scale=spec.scale,
    )  # fmt: skip
    heads = (1, spec.groups, spec.groups)
    found = [
        side if count == 1 else side.unflatten(1, (-1, count)).sum(2)
        for side, count in zip(gradients, heads, strict=True)
    ]
    found = [side for side, is_wanted in zip(found, call.wanted, strict=False) if is_wanted]
    if call.wanted[-1] and call.sinks is not None:
        found.append(_of_sinks(call, call.sinks))
    return found


def _of_sinks(call: GradientOperands, sinks: torch.Tensor) -> torch.Tensor:
    """A sink has a weight and no value: what it adds to the gradient is its part of delta."""
    delta = (call.slopes.float() * call.out.float()).sum(-1)
    return -(torch.exp(sinks.float()[:, None] - call.sums) * delta).sum((0, 2))


def _masked(
    spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None] | None:
    """The mask, where every row keeps a key; None where one does not."""
    is_served = query.device.type == "cpu" and query.numel() and key.numel()
    is_padded = spec.head_dim != spec.value_dim
    if not is_served or is_padded or spec.lengths or why_not_fused(spec, query.device.type):
        return None
    mask = mask_of(spec, query, key.shape[2], inputs, None)
    if mask is None:
        return (None,)
    kept = mask if mask.dtype == torch.bool else ~(mask <= FAINT)
    return (mask,) if bool(kept.any(-1).all()) else None


def _sides(spec: AttentionSpec, *sides: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values as the kernel takes them: as many heads, columns side by side."""
    query, *cache = sides
    if spec.groups > 1:
        cache = [side.repeat_interleave(spec.groups, 1) for side in cache]
    return [side_by_side(side) for side in (query, *cache)]
