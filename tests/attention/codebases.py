"""Attention as public code bases spell it, from memory: language models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.attention.catalogue import Spelling, bfloat, keep, plain, square
from tests.attention.sizes import INF, MIN, B, D, H, K, Q


def heads_last():
    """``[batch, rows, heads * dim]``, as projections give them."""
    return tuple(t.transpose(1, 2).flatten(2) for t in square())


def split(x):
    return x.view(B, -1, H, D).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).contiguous().view(B, -1, H * D)


def tril(n):
    return torch.tril(torch.ones(n, n))


def nano_gpt(q, k, v):
    q, k, v = map(split, (q, k, v))
    mask = tril(1024).view(1, 1, 1024, 1024)
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(mask[:, :, :K, :K] == 0, float("-inf"))
    att = F.dropout(F.softmax(att, dim=-1), 0.1, training=False)
    return merged(att @ v)


def gpt2_tensorflow(q, k, v):
    """As the first port: a mask by ``w * b - 1e10 * (1 - b)``."""
    w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
    b = tril(K)[None, None]
    w = w * b - 1e10 * (1 - b)
    return torch.matmul(F.softmax(w, dim=-1), v)


def gpt2_where(q, k, v):
    w = torch.matmul(q, k.transpose(-1, -2))
    w = w / torch.full([], v.size(-1) ** 0.5, dtype=w.dtype)
    later = tril(K).bool().view(1, 1, K, K)
    w = torch.where(later, w.to(w.dtype), torch.full([], MIN, dtype=w.dtype))
    return torch.matmul(F.softmax(w, dim=-1).type(v.dtype), v)


def gpt_j(q, k, v):
    q, k = q.to(torch.float32), k.to(torch.float32)
    w = torch.matmul(q, k.transpose(-1, -2))
    w = torch.where(tril(K).bool(), w, torch.tensor(MIN, dtype=w.dtype)) / torch.sqrt(
        torch.tensor(D, dtype=torch.float32)
    )
    return torch.matmul(F.softmax(w, dim=-1).to(v.dtype), v)


def gpt_neox(q, k, v):
    flat = q.view(B * H, K, D), k.view(B * H, K, D)
    s = torch.zeros(B * H, K, K, dtype=q.dtype)
    s = torch.baddbmm(s, flat[0], flat[1].transpose(1, 2), beta=1.0, alpha=D**-0.5)
    s = torch.where(tril(K).bool(), s.view(B, H, K, K), torch.tensor(MIN).to(s.dtype))
    return torch.matmul(F.softmax(s, dim=-1).to(v.dtype), v)


def megatron(q, k, v, kept):
    """``[rows, batch, heads, dim]``, a buffer that baddbmm does not read, and booleans to hide."""
    q, k, v = (t.permute(2, 0, 1, 3).contiguous() for t in (q, k, v))
    rows, keys = q.size(0), k.size(0)
    q, k = q.reshape(rows, B * H, D), k.reshape(keys, B * H, D)
    buffer = torch.empty(B * H, rows, keys, dtype=q.dtype)
    s = torch.baddbmm(buffer, q.transpose(0, 1), k.transpose(0, 1).transpose(1, 2), beta=0.0,
                      alpha=1 / math.sqrt(D)).view(B, H, rows, keys)  # fmt: skip
    s.masked_fill_(~kept, -10000.0 * 1e6)
    p = s.softmax(-1).view(B * H, rows, keys)
    v = v.view(keys, B * H, D)
    context = torch.bmm(p, v.transpose(0, 1)).view(B, H, rows, D)
    return context.permute(2, 0, 1, 3).contiguous().view(rows, B, H * D)


def falcon(q, k, v):
    """One head of keys for all, ALiBi in bfloat16 added after the product and scaled with it."""
    k, v = k[:, :1], v[:, :1]
    slopes = 2.0 ** -torch.arange(1, H + 1, dtype=torch.float32)
    alibi = (slopes[:, None] * torch.arange(K)).view(1, H, 1, K).to(torch.bfloat16)
    s = q @ k.transpose(-1, -2)
    s = s.view(B, H, Q, K) + alibi
    s *= 1.0 / math.sqrt(D)
    w = F.softmax(s, dim=-1, dtype=q.dtype).view(B, H, Q, K)
    return (w @ v).flatten(0, 1)


def mpt(q, k, v):
    slopes = (0.5 ** torch.arange(1.0, H + 1)).to(q.dtype)
    alibi = slopes.view(1, H, 1, 1) * torch.arange(1 - K, 1, dtype=q.dtype).view(1, 1, 1, K)
    s = q.matmul(k.permute(0, 1, 3, 2)) * D**-0.5
    s = s + alibi[:, :, :, -K:]
    later = tril(K).to(torch.bool).logical_not()[-Q:, -K:]
    s = s.masked_fill(later.view(1, 1, Q, K), MIN)
    return torch.softmax(s, dim=-1).to(v.dtype).matmul(v)


def chat_glm(q, k, v, kept):
    """Queries are divided by a coefficient of the layer that scores are multiplied by again."""
    coefficient = 7.0
    q = q / (math.sqrt(D) * coefficient)
    s = torch.matmul(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(B, H, Q, K)
    s.masked_fill_(~kept, -10000.0 * 1e9)
    s = s.float() * coefficient
    return torch.bmm(F.softmax(s, dim=-1).type(v.dtype).view(B * H, Q, K), v.flatten(0, 1))


def grok(q, k, v, kept):
    """A cap of 30, then a mask."""
    s = torch.einsum("bhqd,bhkd->bhqk", q, k).float() * 0.08838834764831845
    s = 30.0 * torch.tanh(s / 30.0)
    s = torch.where(kept, s, -1e30)
    return torch.einsum("bhqk,bhkd->bhqd", F.softmax(s, dim=-1).to(q.dtype), v)


def gemma3(q, k, v):
    """QK-norm with ``1 + weight``, a window, and a scale of another size than the heads."""
    gain = torch.linspace(-0.1, 0.1, D, dtype=q.dtype)
    q, k = ((t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6)) * (1 + gain) for t in (q, k))
    s = torch.matmul(q, k.transpose(2, 3)) * 168**-0.5
    rows, keys = torch.arange(K)[:, None], torch.arange(K)[None]
    kept = (keys <= rows) & (keys > rows - 4)
    s = s + torch.where(kept, 0.0, MIN)
    return torch.matmul(F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype), v)


def llama4_chunked(q, k, v):
    """Rows see keys of their own chunk, by positions that are divided."""
    rows, keys = torch.arange(K)[:, None], torch.arange(K)
    kept = (keys // 5 == rows // 5) & (keys <= rows)
    s = (q @ k.mT) * D**-0.5 + torch.where(kept, 0.0, MIN)
    return s.softmax(-1) @ v


def llama4_temperature(q, k, v):
    """Queries are tuned by how far they are."""
    far = torch.log1p(torch.floor((torch.arange(Q, dtype=q.dtype) + 1.0) / 3)) * 0.1 + 1.0
    return ((q * far.view(1, 1, Q, 1)) @ k.mT).softmax(-1) @ v


def lit_gpt_cap(q, k, v):
    s = (q @ k.mT) * D**-0.5
    s = torch.tanh(s / 50) * 50
    mask = torch.ones(K, K, dtype=q.dtype).triu(diagonal=1)
    mask.masked_fill_(mask.bool(), torch.finfo(torch.float32).min)
    s = s + mask
    return F.softmax(s, dim=-1, dtype=torch.float).to(dtype=q.dtype) @ v


def llama_of_meta(q, k, v):
    """A cache that is written by slices and read up to what it holds, and an infinite triangle."""
    cache_k, cache_v = (
        torch.zeros(B, 32, H, D, dtype=q.dtype),
        torch.zeros(B, 32, H, D, dtype=q.dtype),
    )
    cache_k[:B, 4 : 4 + Q] = k[:, :, :Q].transpose(1, 2)
    cache_v[:B, 4 : 4 + Q] = v[:, :, :Q].transpose(1, 2)
    keys, values = cache_k[:B, : 4 + Q].transpose(1, 2), cache_v[:B, : 4 + Q].transpose(1, 2)
    mask = torch.full((Q, Q), -INF)
    mask = torch.triu(mask, diagonal=1)
    mask = torch.hstack([torch.zeros((Q, 4)), mask]).type_as(q)
    s = torch.matmul(q, keys.transpose(2, 3)) / math.sqrt(D)
    s = F.softmax((s + mask).float(), dim=-1).type_as(q)
    return torch.matmul(s, values).transpose(1, 2).contiguous().view(B, Q, -1)


def cache_by_index_copy(q, k, v):
    where = torch.arange(3, 3 + K)
    cache = [torch.zeros(B, H, 32, D, dtype=q.dtype) for _ in range(2)]
    keys, values = cache[0].index_copy(2, where, k), cache[1].index_copy_(2, where, v)
    valid = torch.arange(32) < 3 + K
    s = (q @ keys.mT).masked_fill(~valid, -INF)
    return s.softmax(-1) @ values


def cache_by_scatter(q, k, v):
    where = torch.arange(3, 3 + K)[None, None, :, None].expand(B, H, K, D)
    cache = [torch.zeros(B, H, 32, D, dtype=q.dtype) for _ in range(2)]
    keys, values = cache[0].scatter_(2, where, k), cache[1].scatter(2, where, v)
    s = (q @ keys.mT).masked_fill(torch.arange(32) >= 3 + K, MIN)
    return s.softmax(-1) @ values


def cache_by_index_put(q, k, v):
    keys, values = (torch.zeros(B, H, 32, D, dtype=q.dtype) for _ in range(2))
    keys[:, :, torch.arange(3, 3 + K)] = k
    values[:, :, torch.arange(3, 3 + K)] = v
    s = q @ keys.mT + torch.where(torch.arange(32) < 3 + K, 0.0, -INF)
    return s.softmax(-1) @ values


def cache_by_cat(q, k, v):
    keys, values = torch.cat((k[:, :, :5], k[:, :, 5:]), -2), torch.cat((v, v.flip(2)), dim=2)
    keys = torch.cat([keys, k], dim=2)
    return (q @ keys.transpose(-1, -2)).softmax(dim=-1) @ values


def cache_of_float8(q, k, v):
    keys, values = (t.to(torch.float8_e4m3fn).to(q.dtype) * 0.5 for t in (k, v))
    return (q @ keys.mT).softmax(-1) @ values


def deepseek(q, k, v):
    """Rotary and other columns stand in parts, and one rotary key serves all heads."""
    rope = k[:, :1, :, :4]
    s = torch.einsum("bhqc,bhkc->bhqk", q, k) + torch.einsum(
        "bhqr,bkr->bhqk", q[..., :4], rope[:, 0]
    )
    return torch.einsum("bhqk,bhkd->bhqd", (s * 12**-0.5).softmax(dim=-1), v)


def deepseek_whole(q, k, v):
    rope = k[:, :1, :, :4].expand(-1, H, -1, -1)
    q, k = torch.cat([q, q[..., :4]], -1), torch.cat([k, rope], dim=-1)
    s = torch.matmul(q, k.transpose(2, 3)) * 12**-0.5
    return torch.matmul(F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype), v)


def gated_branches(q, k, v):
    """As native sparse attention has them: sums of two attentions, each times a gate."""
    gate = torch.sigmoid(q.mean(-1, keepdim=True))
    near = (q @ k[:, :, -5:].mT).softmax(-1) @ v[:, :, -5:]
    coarse = [t.unfold(2, 4, 4).mean(-1) for t in (k, v)]
    far = (q @ coarse[0].mT).softmax(-1) @ coarse[1]
    return gate * near + (1 - gate) * far


def differential(q, k, v):
    """The difference of two softmaxes weighs the values."""
    one, other = (q[..., :4] @ k[..., :4].mT).softmax(-1), (q[..., 4:] @ k[..., 4:].mT).softmax(-1)
    return (one - 0.3 * other) @ v


def differential_apart(q, k, v):
    """The same as a difference of two attentions."""
    one = (q[..., :4] @ k[..., :4].mT).softmax(-1) @ v
    return one - 0.3 * ((q[..., 4:] @ k[..., 4:].mT).softmax(-1) @ v)


def talking_heads(q, k, v):
    mix = torch.linspace(-1, 1, H * H, dtype=q.dtype).view(H, H)
    s = torch.einsum("bhqk,hg->bgqk", q @ k.mT, mix)
    return s.softmax(-1) @ v


def talking_heads_after(q, k, v):
    mix = torch.linspace(-1, 1, H * H, dtype=q.dtype).view(H, H)
    w = torch.einsum("bhqk,hg->bgqk", (q @ k.mT).softmax(-1), mix)
    return w @ v


def cosine(q, k, v):
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT * 10).softmax(dim=-1), v)


def several_sinks(q, k, v):
    """Keys that are learned stand before the others, with values of zero."""
    learned = torch.linspace(-1, 1, 4 * D, dtype=q.dtype).view(1, 1, 4, D).expand(B, H, 4, D)
    k = torch.cat([learned, k], dim=2)
    v = torch.cat([torch.zeros_like(learned), v], dim=2)
    return (q @ k.mT).softmax(-1) @ v


def several_sink_scores(q, k, v):
    s = torch.cat([torch.zeros(B, H, Q, 3, dtype=q.dtype), q @ k.mT], -1)
    return s.softmax(-1)[..., 3:] @ v


def retention(q, k, v):
    """RetNet: no softmax."""
    apart = torch.arange(Q)[:, None] - torch.arange(K)
    return ((q @ k.mT) * (0.9 ** apart.clamp(min=0)).to(q.dtype)) @ v


def linear_attention(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z = 1 / (torch.einsum("bhqd,bhd->bhq", q, k.sum(2)) + 1e-6)
    return torch.einsum("bhqd,bhde,bhq->bhqe", q, torch.einsum("bhkd,bhke->bhde", k, v), z)


def softmaxes_of_features(q, k, v):
    """Efficient attention: two softmaxes, and neither of scores."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def performer(q, k, v):
    features = torch.linspace(-1, 1, D * 16, dtype=q.dtype).view(D, 16)
    q, k = (torch.exp(t @ features - t.square().sum(-1, keepdim=True) / 2) for t in (q, k))
    return (q @ (k.mT @ v)) / (q @ k.sum(-2)[..., None])


def heads_in_a_loop(q, k, v):
    return torch.stack([(q[:, h] @ k[:, h].mT * 0.3).softmax(-1) @ v[:, h] for h in range(2)], 1)


def heads_in_a_loop_3d(q, k, v):
    parts = [
        F.softmax(a.bmm(b.transpose(1, 2)), dim=2).bmm(c)
        for a, b, c in zip(q.unbind(1)[:2], k.unbind(1), v.unbind(1), strict=False)
    ]
    return torch.cat(parts, dim=-1)


def online_in_chunks(q, k, v):
    """A softmax over chunks of keys by hand: no softmax of it is whole."""
    m = torch.full((B, H, Q, 1), -INF, dtype=q.dtype)
    total, out = torch.zeros(B, H, Q, 1, dtype=q.dtype), torch.zeros(B, H, Q, D, dtype=q.dtype)
    for start in (0, 9):
        s = q @ k[:, :, start : start + 9].mT
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p, shrink = torch.exp(s - new), torch.exp(m - new)
        total = total * shrink + p.sum(-1, keepdim=True)
        out = out * shrink + p @ v[:, :, start : start + 9]
        m = new
    return out / total


def sliced_rows(q, k, v):
    """As memory is saved: rows in two slices, each whole."""
    out = torch.empty_like(q)
    for start in (0, 3):
        s = q[:, :, start : start + 3] @ k.mT
        out[:, :, start : start + 3] = s.softmax(-1) @ v
    return out


def mapped(q, k, v):
    def one(q, k, v):
        return (q @ k.T * 0.3).softmax(-1) @ v

    return torch.vmap(torch.vmap(one))(q, k, v)


def inner_function(q, k, v):
    def scores(q, k):
        return torch.matmul(q, k.mT)

    return torch.compile(lambda s: F.softmax(s, -1))(scores(q, k)) @ v


def upcast_in_autocast(q, k, v):
    with torch.autocast("cpu", enabled=False):
        return (q.float() @ k.float().mT).softmax(-1) @ v.float()


def transformer_xl(q, k, v):
    """Relative positions by the shift that pads, views and cuts."""
    r = torch.linspace(-1, 1, K * D, dtype=q.dtype).view(1, 1, K, D)
    ac, bd = q @ k.mT, q @ r.mT
    bd = F.pad(bd, (1, 0)).view(B, H, K + 1, K)[:, :, 1:].view(B, H, K, K)
    s = (ac + bd) * D**-0.5
    return s.masked_fill(tril(K) == 0, -INF).softmax(-1) @ v


def conformer(q, k, v, kept):
    """As ESPnet: a shift by a column of zeros, and weights filled with zeros after the softmax."""
    r = torch.linspace(-1, 1, K * D, dtype=q.dtype).view(1, 1, K, D)
    bd = q @ r.transpose(-2, -1)
    bd = torch.cat([torch.zeros((B, H, Q, 1), dtype=q.dtype), bd], dim=-1)
    bd = bd.view(B, H, K + 1, Q)[:, :, 1:].view(B, H, Q, K)
    s = (torch.matmul(q, k.transpose(-2, -1)) + bd) / math.sqrt(D)
    hidden = kept.eq(0)
    s = s.masked_fill(hidden, MIN)
    return torch.softmax(s, dim=-1).masked_fill(hidden, 0.0) @ v


def t5(q, k, v):
    """A table of buckets, one score of each head, and no scale."""
    table = torch.linspace(-1, 1, 8 * H, dtype=q.dtype).view(8, H)
    apart = (torch.arange(Q)[:, None] - torch.arange(K)).abs().clamp(max=7)
    beside = F.embedding(apart, table).permute([2, 0, 1]).unsqueeze(0)
    s = torch.matmul(q, k.transpose(3, 2))
    s += beside
    w = F.softmax(s.float(), dim=-1).type_as(s)
    return torch.matmul(w, v)


def deberta(q, k, v):
    """Content to position and position to content, by gathers."""
    table = torch.linspace(-1, 1, 2 * K * D, dtype=q.dtype).view(1, 1, 2 * K, D)
    index = (torch.arange(Q)[:, None] - torch.arange(K) + K).clamp(0, 2 * K - 1)
    scale = 1 / math.sqrt(3 * D)
    s = torch.matmul(q, k.transpose(-1, -2) * scale)
    c2p = torch.gather(q @ table.mT, -1, index.expand(B, H, Q, K)) * scale
    p2c = torch.gather(k @ table.mT, -1, index.T.expand(B, H, K, Q)).transpose(-1, -2) * scale
    s = s + (c2p + p2c)
    return torch.softmax(s, dim=-1) @ v


def disentangled_softmax(q, k, v, kept):
    """XSoftmax: filled before, and once more with zeros after."""
    hidden = ~kept
    s = (q @ k.mT).masked_fill(hidden, MIN)
    return torch.softmax(s, -1).masked_fill(hidden, 0) @ v


LANGUAGE = {
    "nano_gpt": Spelling(nano_gpt, operands=heads_last, says="is_causal=True"),
    "gpt2_tensorflow": Spelling(gpt2_tensorflow, "!score_function", operands=square),
    "gpt2_where": Spelling(gpt2_where, operands=square, says="is_causal=True"),
    "gpt_j": Spelling(gpt_j, operands=square),
    "gpt_neox": Spelling(gpt_neox, operands=square, says="is_causal=True"),
    "megatron": Spelling(megatron, more=keep),
    "falcon": Spelling(falcon),
    "mpt": Spelling(mpt),
    "chat_glm": Spelling(chat_glm, more=keep),
    "grok": Spelling(grok, "!score_function", more=keep),
    "gemma3": Spelling(gemma3, operands=square),
    "llama4_chunked": Spelling(llama4_chunked, operands=square),
    "llama4_temperature": Spelling(llama4_temperature),
    "lit_gpt_cap": Spelling(lit_gpt_cap, "!score_function", operands=square),
    "llama_of_meta": Spelling(llama_of_meta),
    "cache_by_index_copy": Spelling(cache_by_index_copy),
    "cache_by_scatter": Spelling(cache_by_scatter),
    "cache_by_index_put": Spelling(cache_by_index_put),
    "cache_by_cat": Spelling(cache_by_cat, operands=lambda: plain(keys=K)),
    "cache_of_float8": Spelling(cache_of_float8, operands=bfloat),
    "deepseek": Spelling(deepseek),
    "deepseek_whole": Spelling(deepseek_whole),
    "gated_branches": Spelling(gated_branches, "!few_keys !few_keys"),
    "differential": Spelling(differential, "!weights_changed !weights_changed"),
    "differential_apart": Spelling(differential_apart, "fused fused"),
    "talking_heads": Spelling(talking_heads, "!product"),
    "talking_heads_after": Spelling(talking_heads_after, "!product"),
    "cosine": Spelling(cosine),
    "several_sinks": Spelling(several_sinks),
    "several_sink_scores": Spelling(several_sink_scores, "!product"),
    "retention": Spelling(retention, ""),
    "linear_attention": Spelling(linear_attention, ""),
    "softmaxes_of_features": Spelling(softmaxes_of_features, ""),
    "performer": Spelling(performer, ""),
    "heads_in_a_loop": Spelling(heads_in_a_loop, "fused fused"),
    "heads_in_a_loop_3d": Spelling(heads_in_a_loop_3d, "fused fused"),
    "online_in_chunks": Spelling(online_in_chunks, "!unread_softmax !unread_softmax"),
    "sliced_rows": Spelling(sliced_rows, "fused fused"),
    "mapped": Spelling(mapped, "!transformed"),
    "inner_function": Spelling(inner_function),
    "upcast_in_autocast": Spelling(upcast_in_autocast),
    "transformer_xl": Spelling(transformer_xl, operands=square),
    "conformer": Spelling(conformer, more=keep),
    "t5": Spelling(t5),
    "deberta": Spelling(deberta),
    "disentangled_softmax": Spelling(disentangled_softmax, more=keep),
}
