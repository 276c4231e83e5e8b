"""Attentions whose heads of keys and values are repeated for queries that share them."""

from __future__ import annotations

import torch.nn.functional as F

from tests.attention.sizes import B, G, H


def repeat_kv(x, groups):
    b, h, n, d = x.shape
    return x[:, :, None, :, :].expand(b, h, groups, n, d).reshape(b, h * groups, n, d)


def grouped_queries(q, k, v, m):
    k, v = repeat_kv(k, H // G), repeat_kv(v, H // G)
    return (q @ k.transpose(2, 3) + m).softmax(-1) @ v


def interleaved(q, k, v):
    k, v = (t.repeat_interleave(H // G, dim=1) for t in (k, v))
    return (q @ k.mT).softmax(-1) @ v


def repeated_otherwise(q, k, v):
    k, v = (t.repeat(1, H // G, 1, 1) for t in (k, v))
    return (q @ k.mT).softmax(-1) @ v


def keys_repeated_alone(q, k, v):
    return (q @ repeat_kv(k, H // G).mT).softmax(-1) @ v.repeat(1, H // G, 1, 1)


def one_head_expanded(q, k, v):
    k, v = k[:, :1].expand(-1, H, -1, -1), v[:, :1].tile(1, H, 1, 1)
    return (q @ k.mT).softmax(-1) @ v


def one_head_of_one_batch(q, k, v):
    k, v = (t[:1, :1].expand(B, H, -1, -1) for t in (k, v))
    return (q @ k.mT).softmax(-1) @ v


def fused_tiled(q, k, v):
    k, v = (t[:, :1].repeat(1, H, 1, 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def fused_repeated(q, k, v, kept):
    k, v = repeat_kv(k, H // G), repeat_kv(v, H // G)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=kept)
