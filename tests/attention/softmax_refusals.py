"""What looks like the softmax of an attention, and is none."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.attention.sizes import INF, B, H, K, Q


def exp_over_sum_of_a_finite_mask(q, k, v, kept):
    e = (q @ k.mT).masked_fill(~kept, -1e9).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


def shifted_then_masked(q, k, v, kept):
    s = q @ k.mT
    e = (s - s.amax(-1, keepdim=True)).masked_fill(~kept, -1e9).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


def exp_over_other_sum(q, k, v):
    s = q @ k.mT
    return (s.exp() / (2 * s).exp().sum(-1, keepdim=True)) @ v


def exp_over_more_than_its_sum(q, k, v):
    e = (q @ k.mT).exp()
    return (e / (e.sum(-1, keepdim=True) + 1)) @ v


def exp_over_less_than_its_sum(q, k, v):
    e = (q @ k.mT).exp()
    return (e / (e.sum(-1, keepdim=True) - 1)) @ v


def off_by_one(q, k, v):
    s = q @ k.mT
    m = s.amax(-1, keepdim=True).clamp(min=0)
    e = (s - m).exp()
    return (e / ((-m).exp() + e.sum(-1, keepdim=True))) @ v


def off_by_another_one(q, k, v):
    """It is not the number that scores are less, that the one is."""
    s = q @ k.mT
    m = s.amax(-1, keepdim=True)
    e = (s - m).exp()
    return (e / ((-(2 * m)).exp() + e.sum(-1, keepdim=True))) @ v


def off_by_one_of_another_base(q, k, v):
    s = q @ k.mT
    m = s.amax(-1, keepdim=True)
    e = 2 ** (s - m)
    return (e / ((-m).exp() + e.sum(-1, keepdim=True))) @ v


def exp_of_no_scores(q, k, v):
    """As linear attention has it."""
    return q.exp() @ (k.exp().mT @ v)


def powers_of_a_negative_number(q, k, v):
    e = (-2.0) ** (q @ k.mT)
    return (e / e.sum(-1, keepdim=True)) @ v


def off_by_one_masked(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    m = s.amax(-1, keepdim=True)
    e = (s - m).exp()
    return (e / (e.sum(-1, keepdim=True) + torch.exp(-m))) @ v


def divided_after_by_another_sum(q, k, v):
    s = q @ k.mT
    return (s.exp() @ v) / (2 * s).exp().sum(-1, keepdim=True)


def divided_after_by_sums_of_rows(q, k, v):
    e = (q @ k.mT).exp()
    return (e @ v) / e.sum(-2, keepdim=True)


def divided_after_and_read(q, k, v):
    e = (q @ k.mT).exp()
    out = e @ v
    return out / e.sum(-1, keepdim=True) + out


def divided_after_by_few_heads(q, k, v):
    e = (q[0, 0] @ k[0, 0].mT).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


def exp_over_sum_of_rows(q, k, v):
    e = (q @ k.mT).exp()
    return (e / e.sum(-2, keepdim=True)) @ v


def less_another_maximum(q, k, v):
    s = q @ k.mT
    return (s - s.amax(-2, keepdim=True)).softmax(-1) @ v


def less_a_logarithm_of_earlier_scores(q, k, v):
    s = q @ k.mT
    heads = s.view(B * H, Q, K)
    heads.mul_(0.5)
    total = s.exp().sum(-1, keepdim=True).log()
    heads.mul_(2)
    return (s - total).exp() @ v


def over_bits_of_its_sum(q, k, v):
    e = (q @ k.mT).exp()
    return (e / e.sum(-1, keepdim=True).view(torch.int32)) @ v


def exp_normalized(q, k, v):
    """Rows that keep no key are zeros by the least length that it divides by."""
    return F.normalize((q @ k.mT).exp(), p=1, dim=-1) @ v


def exp_times_a_mask(q, k, v, kept):
    e = (q @ k.mT).exp() * kept
    return (e / e.sum(-1, keepdim=True)) @ v


def powers_of_two_over_those_of_three(q, k, v):
    s = q @ k.mT
    return (2**s / (3**s).sum(-1, keepdim=True)) @ v
