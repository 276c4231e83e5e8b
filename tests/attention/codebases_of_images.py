"""Attention as public code bases spell it, from memory: images, sound, and encoders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.attention.catalogue import Spelling, bfloat, keep, square
from tests.attention.codebases import heads_last, split
from tests.attention.sizes import INF, MIN, B, D, H, K, Q


def joined():
    """Queries, keys and values of one projection: ``[batch, rows, 3 * heads * dim]``."""
    return torch.randn(B, K, 3 * H * D), torch.empty(0), torch.empty(0)


def rows_of(t):
    return t.permute(2, 0, 3, 1, 4)


def vit(x, _, __):
    """As timm: one projection, unbound."""
    q, k, v = x.reshape(B, K, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    q = q * D**-0.5
    attn = (q @ k.transpose(-2, -1)).softmax(dim=-1)
    return (attn @ v).transpose(1, 2).reshape(B, K, H * D)


def vit_of_lucidrains(x, _, __):
    """Its rearrangements, in torch."""
    q, k, v = (t.unflatten(2, (H, D)).permute(0, 2, 1, 3) for t in x.chunk(3, dim=-1))
    attn = torch.nn.Softmax(dim=-1)(torch.matmul(q, k.transpose(-1, -2)) * D**-0.5)
    return torch.matmul(attn, v).permute(0, 2, 1, 3).flatten(2)


def swin(q, k, v):
    """A table of relative positions, and a mask of shifted windows that regroups the batch."""
    table = torch.linspace(-1, 1, 32 * H, dtype=q.dtype).view(32, H)
    index = (torch.arange(K)[:, None] - torch.arange(K)) % 32
    attn = (q * D**-0.5) @ k.transpose(-2, -1)
    beside = table[index.view(-1)].view(K, K, -1).permute(2, 0, 1).contiguous()
    attn = attn + beside.unsqueeze(0)
    windows = torch.zeros(2, K, K, dtype=q.dtype)
    windows[1, :5, 5:] = -100.0
    attn = attn.view(B // 2, 2, H, K, K) + windows.unsqueeze(1).unsqueeze(0)
    attn = F.softmax(attn.view(-1, H, K, K), dim=-1)
    return (attn @ v).transpose(1, 2).reshape(B, K, H * D)


def swin_v2(q, k, v):
    """Cosines, times a clamped exponential of each head."""
    logit = torch.log(10 * torch.ones((H, 1, 1), dtype=q.dtype))
    attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    attn = attn * torch.clamp(logit, max=math.log(1.0 / 0.01)).exp()
    return attn.softmax(dim=-1) @ v


def beit(q, k, v):
    table = torch.linspace(-1, 1, 40 * H, dtype=q.dtype).view(40, H)
    index = (torch.arange(K)[:, None] + torch.arange(K)) % 40
    attn = (q * D**-0.5) @ k.transpose(-2, -1)
    attn = attn + F.embedding(index, table).permute(2, 0, 1).contiguous().unsqueeze(0)
    return attn.softmax(dim=-1) @ v


def max_vit(q, k, v):
    """Windows of blocks: five dimensions."""
    q, k, v = (t[:, None].expand(B, 2, H, -1, D) for t in (q, k, v))
    attn = torch.einsum("bnhid,bnhjd->bnhij", q, k) * D**-0.5
    return torch.einsum("bnhij,bnhjd->bnhid", attn.softmax(-1), v)


def max_vit_blocks(q, k, v):
    """As an MBConv model of lucidrains' has it: windows beside the batch, bias behind."""
    sim = torch.einsum("b h i d, b h j d -> b h i j", q * D**-0.5, k)
    beside = torch.linspace(-1, 1, K * K * H, dtype=q.dtype).view(K, K, H)
    sim = sim + beside.permute(2, 0, 1)
    return torch.einsum("b h i j, b h j d -> b h i d", sim.softmax(dim=-1), v)


def detr(q, k, v, kept):
    """``[rows, batch * heads, dim]`` by bmm, and padding by a view of four dimensions."""
    q, k, v = (t.flatten(0, 1) for t in (q * D**-0.5, k, v))
    w = torch.bmm(q, k.transpose(1, 2)).view(B, H, Q, K)
    w = w.masked_fill(~kept, float("-inf")).view(B * H, Q, K)
    w = F.dropout(F.softmax(w, dim=-1), p=0.0, training=True)
    return torch.bmm(w, v).transpose(0, 1).contiguous().view(Q, B, H * D)


def sam(q, k, v):
    """Decomposed positions of height and width, by einsums with queries."""
    r = torch.linspace(-1, 1, 4 * 4 * D, dtype=q.dtype).view(4, 4, D)
    q, k, v = (t[:, :, :16].flatten(0, 1) for t in (q, k, v))
    attn = (q * D**-0.5) @ k.transpose(-2, -1)
    square = q.reshape(B * H, 4, 4, D)
    h = torch.einsum("bhwc,hkc->bhwk", square, r)
    w = torch.einsum("bhwc,wkc->bhwk", square, r)
    attn = (attn.view(B * H, 4, 4, 4, 4) + h[:, :, :, :, None] + w[:, :, :, None, :]).view(
        B * H, 16, 16
    )
    return (attn.softmax(dim=-1) @ v).view(B, H, 4, 4, -1).permute(0, 2, 3, 1, 4).flatten(3)


def perceiver(q, k, v, kept):
    """Learned rows: fewer than keys, a mask of what is left out by the least number."""
    s = torch.einsum("bhid,bhjd->bhij", q, k) * D**-0.5
    s = s.masked_fill(~kept, -torch.finfo(s.dtype).max)
    return torch.einsum("bhij,bhjd->bhid", s.softmax(dim=-1), v)


def x_transformers(q, k, v, kept):
    """Scores are less their greatest, which changes nothing."""
    dots = torch.einsum("bhid,bhjd->bhij", q, k) * D**-0.5
    dots = dots.masked_fill(~kept, -torch.finfo(torch.float32).max)
    dots = dots - dots.amax(dim=-1, keepdim=True).detach()
    attn = F.softmax(dots, dim=-1, dtype=torch.float32).type(dots.dtype)
    return torch.einsum("bhij,bhjd->bhid", attn, v)


def diffusers(q, k, v):
    """``baddbmm`` into memory that it does not read, upcast, its softmax in float32."""
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    q, k = q.float(), k.float()
    s = torch.baddbmm(
        torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype), q, k.transpose(-1, -2),
        beta=0, alpha=D**-0.5,
    )  # fmt: skip
    return torch.bmm(s.float().softmax(dim=-1).to(v.dtype), v)


def stable_diffusion(q, k, v):
    """As CompVis': einsum over merged heads."""
    q, k, v = (t.reshape(B * H, -1, D) for t in (q, k, v))
    sim = torch.einsum("b i d, b j d -> b i j", q, k) * D**-0.5
    out = torch.einsum("b i j, b j d -> b i d", sim.softmax(dim=-1), v)
    return out.unflatten(0, (B, H)).permute(0, 2, 1, 3).reshape(B, -1, H * D)


def stable_diffusion_sliced(q, k, v):
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    out = torch.zeros(B * H, q.shape[1], D, dtype=q.dtype)
    for start in range(0, B * H, 4):
        end = start + 4
        s = torch.einsum("b i d, b j d -> b i j", q[start:end], k[start:end]) * D**-0.5
        out[start:end] = torch.einsum("b i j, b j d -> b i d", s.softmax(dim=-1), v[start:end])
    return out


def attention_of_channels(q, k, v):
    """The autoencoder's: columns are positions, and weights stand right."""
    q, k, v = q.flatten(0, 1), k.flatten(0, 1).mT.contiguous(), v.flatten(0, 1).mT.contiguous()
    w = F.softmax(torch.bmm(q, k) * D**-0.5, dim=2)
    return torch.bmm(v, w.permute(0, 2, 1))


def guided_diffusion(x, _, __):
    """Queries and keys times the fourth root of the scale, by einsums over columns."""
    q, k, v = x.transpose(1, 2).reshape(B * H, 3 * D, K).split(D, dim=1)
    scale = 1 / math.sqrt(math.sqrt(D))
    w = torch.einsum("bct,bcs->bts", q * scale, k * scale)
    w = torch.softmax(w.float(), dim=-1).type(w.dtype)
    return torch.einsum("bts,bcs->bct", w, v).reshape(B, -1, K)


def non_local(q, k, v):
    f = torch.matmul(q.flatten(0, 1), k.flatten(0, 1).permute(0, 2, 1))
    y = torch.matmul(F.softmax(f, dim=-1), v.flatten(0, 1))
    return y.permute(0, 2, 1).contiguous()


def clip_of_openai(q, k, v):
    """A triangle that is filled in place."""
    mask = torch.empty(K, K).fill_(float("-inf")).triu_(1)
    w = torch.baddbmm(mask.expand(B * H, K, K).to(q.dtype), q.flatten(0, 1) * D**-0.5,
                      k.flatten(0, 1).mT)  # fmt: skip
    return torch.bmm(F.softmax(w, dim=-1), v.flatten(0, 1))


def whisper(q, k, v):
    scale = D**-0.25
    q, k, v = (split(t) for t in (q, k, v))
    qk = (q * scale) @ (k * scale).transpose(-1, -2)
    qk = qk + torch.empty(448, 448).fill_(-INF).triu_(1)[:K, :K]
    w = F.softmax(qk.float(), dim=-1).to(q.dtype)
    return (w @ v).permute(0, 2, 1, 3).flatten(start_dim=2)


def xlm(q, k, v, kept):
    s = torch.matmul(q / math.sqrt(D), k.transpose(2, 3))
    mask = (kept == 0).view(B, 1, Q, K).expand_as(s)
    s.masked_fill_(mask, -INF)
    return torch.matmul(F.softmax(s.float(), dim=-1).type_as(s), v)


def fairseq(q, k, v, kept):
    w = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    w = w.view(B, H, Q, K).masked_fill(~kept.to(torch.bool), float("-inf")).view(B * H, Q, K)
    p = F.softmax(w, dim=-1, dtype=torch.float32).type_as(w)
    return torch.bmm(p, v.flatten(0, 1))


def bert_extended(q, k, v, kept):
    beside = (1.0 - kept[:, :, :1].to(q.dtype)) * MIN
    s = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(D)
    return F.softmax(s + beside, dim=-1) @ v


def longformer_chunks(q, k, v):
    """Keys of two chunks for the rows of one, by a view with strides."""
    q, k, v = (t[:, :, :16].flatten(0, 1).contiguous() for t in (q, k, v))
    q = q.view(B * H, 2, 8, D)
    k, v = (F.pad(t, (0, 0, 4, 4)).as_strided((B * H, 2, 16, D), (24 * D, 8 * D, D, 1))
            for t in (k, v))  # fmt: skip
    s = torch.einsum("bcxd,bcyd->bcxy", q, k) * D**-0.5
    return torch.einsum("bcxy,bcyd->bcxd", s.softmax(dim=-1), v).reshape(B, H, 16, D)


def big_bird(q, k, v):
    """Blocks that are gathered, one softmax over what two products give side by side."""
    near, first = k[:, :, -8:], k[:, :, :9]
    s = torch.cat([q @ near.mT, q @ first.mT], dim=-1)
    w = s.softmax(dim=-1)
    return w[..., :8] @ v[:, :, -8:] + w[..., 8:] @ v[:, :, :9]


def luong(q, k, v):
    """One row a sequence, whose dimension of one is taken away for the softmax."""
    q, k, v = q[:, 0, :1], k[:, 0], v[:, 0]
    w = F.softmax(torch.bmm(q, k.transpose(1, 2)).squeeze(1), dim=1)
    return torch.bmm(w.unsqueeze(1), v).squeeze(1)


def bahdanau(q, k, v):
    """Additive: no product of queries and keys."""
    gain = torch.linspace(-1, 1, D, dtype=q.dtype)
    s = (torch.tanh(q[:, :, :, None] + k[:, :, None]) * gain).sum(-1)
    return s.softmax(-1) @ v


def graph_attention(q, k, v):
    """As GAT: a sum of a number of the row and one of the key."""
    e = F.leaky_relu(q.sum(-1, keepdim=True) + k.sum(-1)[..., None, :], 0.2)
    return e.softmax(dim=-1) @ v


def attention_pool(q, k, v):
    """Learned queries, one for each head."""
    learned = torch.linspace(-1, 1, H * D, dtype=q.dtype).view(1, H, 1, D)
    return ((learned * k).sum(-1).softmax(-1).unsqueeze(-1) * v).sum(2)


def by_powers_of_a_tensor(q, k, v):
    p = torch.tensor(3.0) ** (0.3 * (q @ k.mT))
    return (p / p.sum(-1, keepdim=True)) @ v


def scaled_by_a_number_that_is_a_tensor(q, k, v):
    return (torch.tensor(0.3) * (q @ k.mT) / torch.tensor([2.0])[0]).softmax(-1) @ v


def scaled_by_an_input(q, k, v, scale):
    return (q @ k.mT * scale.exp()).softmax(-1) @ v


def chosen_last(q, k, v, kept):
    return torch.where(~kept, torch.tensor(-1e9), q @ k.mT).softmax(-1) @ v


def chosen_of_full(q, k, v, kept):
    s = q @ k.mT
    return torch.where(kept, s, torch.full_like(s, -INF)).softmax(-1) @ v


def chosen_of_numbers(q, k, v, kept):
    s = q @ k.mT
    return torch.where(kept, s, torch.finfo(s.dtype).min * torch.ones_like(s)).softmax(-1) @ v


def chosen_of_two_scores(q, k, v, kept):
    return torch.where(kept, q @ k.mT, (q * 0.5) @ k.flip(2).mT).softmax(-1) @ v


def minimum_of_a_mask(q, k, v, kept):
    """A mask as the lesser of scores and what is minus infinity where they are hidden."""
    return torch.minimum(q @ k.mT, torch.where(kept, INF, -INF)).softmax(-1) @ v


IMAGES = {
    "vit": Spelling(vit, operands=joined),
    "vit_of_lucidrains": Spelling(vit_of_lucidrains, operands=joined),
    "swin": Spelling(swin, operands=square),
    "swin_v2": Spelling(swin_v2),
    "beit": Spelling(beit, operands=square),
    "max_vit": Spelling(max_vit),
    "max_vit_blocks": Spelling(max_vit_blocks, operands=square),
    "detr": Spelling(detr, more=keep),
    "sam": Spelling(sam, operands=square),
    "perceiver": Spelling(perceiver, more=keep),
    "x_transformers": Spelling(x_transformers, more=keep),
    "diffusers": Spelling(diffusers, operands=bfloat),
    "stable_diffusion": Spelling(stable_diffusion),
    "stable_diffusion_sliced": Spelling(stable_diffusion_sliced, "fused fused"),
    "attention_of_channels": Spelling(attention_of_channels),
    "guided_diffusion": Spelling(guided_diffusion, operands=joined),
    "non_local": Spelling(non_local),
    "clip_of_openai": Spelling(clip_of_openai, operands=square),
    "whisper": Spelling(whisper, operands=heads_last),
    "xlm": Spelling(xlm, more=keep),
    "fairseq": Spelling(fairseq, more=keep),
    "bert_extended": Spelling(bert_extended, more=keep),
    "longformer_chunks": Spelling(longformer_chunks, operands=square),
    "big_bird": Spelling(big_bird, "!product"),
    "luong": Spelling(luong, "!score_function"),
    "bahdanau": Spelling(bahdanau, ""),
    "graph_attention": Spelling(graph_attention, ""),
    "attention_pool": Spelling(attention_pool, "!product"),
    "by_powers_of_a_tensor": Spelling(by_powers_of_a_tensor),
    "scaled_by_a_number_that_is_a_tensor": Spelling(scaled_by_a_number_that_is_a_tensor),
    "scaled_by_an_input": Spelling(scaled_by_an_input, more=lambda: (torch.randn(()),)),
    "chosen_last": Spelling(chosen_last, more=keep),
    "chosen_of_full": Spelling(chosen_of_full, more=keep),
    "chosen_of_numbers": Spelling(chosen_of_numbers, more=keep),
    "chosen_of_two_scores": Spelling(chosen_of_two_scores, "!score_function", more=keep),
    "minimum_of_a_mask": Spelling(minimum_of_a_mask, "!score_function", more=keep),
}
