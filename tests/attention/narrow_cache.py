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


def scaled(q: Any, k: Any, v: Any) -> torch.Tensor:
    """What is read is more than the cast."""
    return spelled(q, 0.5 * k.to(q.dtype), v)


def written(q: Any, k: Any, v: Any) -> torch.Tensor:
    """The cache is another one when the result is computed."""
    wide = k.to(q.dtype)
    k.zero_()
    return F.scaled_dot_product_attention(q, wide, v.to(q.dtype), enable_gqa=True)


def operands(rows: int = 3, kind: torch.dtype = FP8) -> list[torch.Tensor]:
    """Queries of float32, keys and values of ``kind``."""
    sides = [torch.randn(2, KEY_HEADS, KEYS, DIM).to(kind) for _ in range(2)]
    return [torch.randn(2, HEADS, rows, DIM), *sides]
