"""Attention over a cache in a narrow dtype, which the graph widens before it is read."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.attention.small_models import repeat

HEADS, KEY_HEADS, KEYS, DIM = 4, 2, 40, 16
FP8 = torch.float8_e4m3fn


def spelled(q: Any, k: Any, v: Any) -> torch.Tensor:
    """Heads are repeated after the cast."""
    k, v = (repeat(side.to(q.dtype), HEADS // KEY_HEADS) for side in (k, v))
    return torch.softmax(q @ k.transpose(2, 3) * DIM**-0.5, -1) @ v


def by_one_call(q: Any, k: Any, v: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), enable_gqa=True)


def scaled(q: Any, k: Any, v: Any, k_scale: Any, v_scale: Any) -> torch.Tensor:
    """Scales of any shape that broadcasts."""
    return spelled(q, k.to(q.dtype) * k_scale, v_scale * v.to(q.dtype))


def rows_first(q: Any, k: Any, v: Any, k_scale: Any) -> torch.Tensor:
    """A cache of [batch, keys, heads, dim], scaled in float32; values are not."""
    k = (k.float() * k_scale).to(q.dtype).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v.to(q.dtype).transpose(1, 2), enable_gqa=True)


def halved(q: Any, k: Any, v: Any) -> torch.Tensor:
    """A scale that is a number."""
    return spelled(q, 0.5 * k.to(q.dtype), v)


def one_key(q: Any, k: Any, v: Any, k_scale: Any, v_scale: Any) -> torch.Tensor:
    """[batch, heads, dim], scaled before the dimension of keys is added."""
    k, v = k.to(q.dtype) * k_scale, v.to(q.dtype) * v_scale
    return F.scaled_dot_product_attention(q, k.unsqueeze(2), v.unsqueeze(2))


def written(q: Any, k: Any, v: Any) -> torch.Tensor:
    """The cache is another one when the result is computed."""
    wide = k.to(q.dtype)
    k.zero_()
    return F.scaled_dot_product_attention(q, wide, v.to(q.dtype), enable_gqa=True)


def rescaled(q: Any, k: Any, v: Any, k_scale: Any) -> torch.Tensor:
    """The scale is another one when the result is computed."""
    k = k.to(q.dtype) * k_scale
    k_scale.add_(1.0)
    return F.scaled_dot_product_attention(q, k, v.to(q.dtype), enable_gqa=True)


def operands(rows: int = 3, kind: torch.dtype = FP8) -> list[torch.Tensor]:
    """Queries of float32, keys and values of ``kind``."""
    sides = [torch.randn(2, KEY_HEADS, KEYS, DIM).to(kind) for _ in range(2)]
    return [torch.randn(2, HEADS, rows, DIM), *sides]


def of_heads(shape: tuple[int, ...] = (KEY_HEADS, 1, 1)) -> list[torch.Tensor]:
    """Operands, and two scales of a shape."""
    return [*operands(), *(torch.rand(shape) + 0.5 for _ in range(2))]


def of_one_key() -> list[torch.Tensor]:
    """What ``one_key`` takes, of as many sequences as heads and a scale of each sequence."""
    cache = [torch.randn(HEADS, HEADS, DIM).to(FP8) for _ in range(2)]
    scales = [torch.rand(HEADS, 1, 1) + 0.5 for _ in range(2)]
    return [torch.randn(HEADS, HEADS, 3, DIM), *cache, *scales]


def transposed() -> list[torch.Tensor]:
    """What ``rows_first`` takes."""
    q, *cache = operands()
    return [q, *(side.transpose(1, 2).contiguous() for side in cache), torch.rand(KEY_HEADS, 1)]
