"""Spellings of the softmax of an attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.attention.sizes import INF, B, H, K, Q


def exp_over_sum(q, k, v, kept):
    e = torch.exp((q @ k.mT).masked_fill(~kept, -INF))
    return (e / e.sum(-1, keepdim=True)) @ v


def exp_of_shifted(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -1e9)
    s = s - s.max(-1, keepdim=True)[0].detach()
    e = s.exp()
    e /= e.sum(-1)[..., None]
    return e @ v


def exp_twice(q, k, v):
    s = 0.3 * (q @ k.mT)
    s = s - s.amax(dim=-1, keepdim=True)
    return s.exp().div(s.exp().sum(dim=-1, keepdims=True)) @ v


def exp_times_inverse(q, k, v, kept):
    e = torch.exp((q @ k.mT).masked_fill(~kept, -INF))
    return (e * e.sum(-1, keepdim=True).reciprocal()) @ v


def exp_times_one_over(q, k, v):
    e = (q @ k.mT).exp()
    return (1 / e.sum(-1, keepdim=True) * e) @ v


def exp_divided_after(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


def exp_divided_after_in_place(q, k, v):
    e = (0.3 * torch.bmm(q, k.mT)).exp()
    out = torch.bmm(e, v)
    out /= e.sum(2)[..., None]
    return out


def special_log_softmax(q, k, v):
    return torch.special.log_softmax(q @ k.mT, -1).exp() @ v


def exp_of_logarithms(q, k, v):
    s = 0.3 * (q @ k.mT)
    return torch.exp(s - torch.logsumexp(s, -1, keepdim=True)) @ v


def log_softmax(q, k, v):
    return F.log_softmax(q @ k.mT, dim=-1).exp() @ v


def special_logarithm(q, k, v):
    return torch.special.log_softmax(q @ k.mT, -1).exp() @ v


def powers_of_two(q, k, v):
    s = (q @ k.mT) * (0.3 / math.log(2))
    p = torch.exp2(s - s.amax(-1, keepdim=True))
    return (p / p.sum(-1, keepdim=True)) @ v


def powers_of_a_number(q, k, v):
    p = 3 ** (0.3 * (q @ k.mT))
    return (p * p.sum(-1, keepdim=True) ** -1) @ v


def powers_of_e(q, k, v):
    s = q @ k.mT
    p = torch.pow(math.e, s - s.amax(-1, keepdim=True))
    return (p / p.sum(-1).view(B, H, Q, 1)) @ v


def exp_less_a_logarithm(q, k, v):
    s = 0.3 * (q @ k.mT)
    return (s - s.exp().sum(-1, keepdim=True).log()).exp() @ v


def softmin(q, k, v):
    return F.softmin(q @ k.mT, dim=-1) @ v


def less_a_logarithm_of_what_a_view_wrote(q, k, v):
    s = q @ k.mT
    s.view(B * H, Q, K).mul_(0.5)
    return (s - s.exp().sum(-1, keepdim=True).log()).exp() @ v
