"""Torch's fused attention for processors and its sums' logarithms, which tell it of sinks."""

from __future__ import annotations

import torch

aten = torch.ops.aten


def fused_with_sums(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    sinks: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result, rows before heads in memory, and logarithms, float32[batch, heads, rows].

    ``mask`` as ``library.mask_of`` gives it; ``sinks`` are scores, [heads], that take part in sums
    and have no value. A row whose every key is at minus infinity gives zeros, and a logarithm that
    says nothing.
    """
    sides = [side_by_side(side) for side in (query, key, value)]
    out, sums = aten._scaled_dot_product_flash_attention_for_cpu(
        *sides, 0.0, is_causal, attn_mask=added(query, mask), scale=scale
    )
    sums = sums.float()
    if sinks is not None:
        column = sinks.float()[:, None]
        spoiled = column.clamp(min=0.0) * 0.0  # NaN of one that is infinite, as softmax gives
        share = torch.sigmoid(sums - column) + spoiled  # of keys, in a sum of both
        # The share is no number of 16 bits: only the product is rounded.
        out, sums = (out * share[..., None]).to(out.dtype), torch.logaddexp(sums, column)
    return out.transpose(1, 2).contiguous().transpose(1, 2), sums.contiguous()


def added(query: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a mask of booleans as what the kernel adds, and any with its keys side by side."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return side_by_side(mask)


def side_by_side(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose last dimension the kernel can read."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
