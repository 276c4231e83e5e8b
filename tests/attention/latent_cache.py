"""Latent attention in its absorbed form: one small vector of each key is its value as well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HEADS, KEYS, LATENT, TURNED = 4, 40, 32, 16
SCALE = (LATENT + TURNED) ** -0.5


def two_products(q: Any, q_pe: Any, c: Any, k_pe: Any) -> torch.Tensor:
    """[batch, heads, rows, ...] over [batch, keys, ...]."""
    scores = q @ c.unsqueeze(1).mT + q_pe @ k_pe.unsqueeze(1).mT
    return torch.softmax(scores * SCALE, -1) @ c.unsqueeze(1)


def rest_first(q: Any, q_pe: Any, c: Any, k_pe: Any) -> torch.Tensor:
    """The other product first, as an einsum, and a softmax in float32."""
    scores = torch.einsum("bhsr,btr->bhst", q_pe, k_pe) + torch.einsum("bhsc,btc->bhst", q, c)
    weights = (SCALE * scores).softmax(-1, dtype=torch.float32).type_as(q)
    return torch.einsum("bhst,btc->bhsc", weights, c)


def masked(q: Any, q_pe: Any, c: Any, k_pe: Any) -> torch.Tensor:
    """As ``baddbmm`` with a mask of the first keys."""
    batch, heads, rows, _ = q.shape
    one, other = (side.reshape(batch, heads * rows, -1) for side in (q, q_pe))
    scores = torch.baddbmm(one @ c.mT, other, k_pe.mT) * SCALE
    scores = scores.masked_fill(torch.arange(KEYS) < 3, -torch.inf)
    return (torch.softmax(scores, -1) @ c).view(batch, heads, rows, -1)


def put_together(q: Any, q_pe: Any, c: Any, k_pe: Any) -> torch.Tensor:
    """Whole keys are made, of one head."""
    query, key = torch.cat((q, q_pe), -1), torch.cat((c, k_pe), -1)[:, None]
    return F.scaled_dot_product_attention(query, key, c[:, None], scale=SCALE, enable_gqa=True)


def one_buffer(q: Any, q_pe: Any, cache: Any) -> torch.Tensor:
    """A cache of whole keys, of which values are a view."""
    key, query = cache.unsqueeze(1), torch.cat((q, q_pe), -1)
    return torch.softmax(query @ key.transpose(2, 3) * SCALE, -1) @ key[..., :LATENT]


class Absorbed(nn.Module):
    """Keys are added to two caches, and read there, as DeepSeek publishes it."""

    kv_cache: torch.Tensor
    pe_cache: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(HEADS, 2 * TURNED, LATENT) / 4)
        self.register_buffer("kv_cache", torch.randn(2, KEYS + 8, LATENT), persistent=False)
        self.register_buffer("pe_cache", torch.randn(2, KEYS + 8, TURNED), persistent=False)

    def forward(self, q_nope: Any, q_pe: Any, kv: Any, k_pe: Any) -> torch.Tensor:
        """[batch, rows, heads, ...], and new rows [batch, rows, ...] of both caches."""
        batch, rows = q_pe.shape[:2]
        begin, end = KEYS - rows, KEYS
        q_nope = torch.einsum("bshd,hdc->bshc", q_nope, self.up[:, :TURNED])
        self.kv_cache[:batch, begin:end] = kv
        self.pe_cache[:batch, begin:end] = k_pe
        scores = (
            torch.einsum("bshc,btc->bsht", q_nope, self.kv_cache[:batch, :end])
            + torch.einsum("bshr,btr->bsht", q_pe, self.pe_cache[:batch, :end])
        ) * SCALE
        scores = scores.softmax(dim=-1, dtype=torch.float32).type_as(q_pe)
        x = torch.einsum("bsht,btc->bshc", scores, self.kv_cache[:batch, :end])
        return torch.einsum("bshc,hdc->bshd", x, self.up[:, -TURNED:])


def operands(rows: int = 3) -> list[torch.Tensor]:
    """Two parts of queries, and of keys."""
    queries = [torch.randn(2, HEADS, rows, size) for size in (LATENT, TURNED)]
    return [*queries, *(torch.randn(2, KEYS, size) for size in (LATENT, TURNED))]


def new_rows(rows: int = 1) -> list[torch.Tensor]:
    """What ``Absorbed`` takes."""
    queries = [torch.randn(2, rows, HEADS, TURNED) for _ in range(2)]
    return [*queries, *(torch.randn(2, rows, size) for size in (LATENT, TURNED))]


def buffered(rows: int = 3) -> list[torch.Tensor]:
    """What ``one_buffer`` takes."""
    q, q_pe, c, k_pe = operands(rows)
    return [q, q_pe, torch.cat((c, k_pe), -1)]
