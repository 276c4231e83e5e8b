"""What stands between product and softmax that torch's attention has no word for: a line each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.attention import refusals, softmax_refusals
from tests.attention.catalogue import (
    Spelling,
    bfloat,
    bias,
    dead_rows,
    grouped,
    keep,
    pair,
    square,
    three,
)
from tests.attention.mask_spellings import raised_of_two
from tests.attention.repeated_heads import repeat_kv
from tests.attention.sizes import INF, MIN, B, H, K, Q


def capped_in_place(q, k, v, m):
    s = q @ k.mT
    s /= 5.0
    s.tanh_()
    s *= 5
    s += m
    return s.softmax(-1) @ v


def capped_then_causal(q, k, v):
    """As Gemma 2."""
    s = torch.matmul(q, k.transpose(2, 3)) * 0.25
    s = torch.tanh(s / 2.0) * 2.0
    later = torch.ones(K, K, dtype=torch.bool).triu(1)
    s = s + torch.zeros(K, K).masked_fill(later, torch.finfo(torch.float32).min)
    return F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def capped_and_told(q, k, v, kept):
    """Rows that keep no key give zeros."""
    s = (2.0 * torch.tanh(q @ k.mT / 2.0)).masked_fill(~kept, -INF)
    return s.softmax(-1).nan_to_num() @ v


def capped_groups(q, k, v):
    s = q @ repeat_kv(k, 2).mT
    return F.hardtanh(s, -2.0, 2.0).softmax(-1) @ repeat_kv(v, 2)


def swish(q, k, v):
    s = q @ k.mT
    return (s * torch.sigmoid(s)).softmax(-1) @ v


def leaky(q, k, v, m):
    s = (q @ k.mT + m) / 3
    return torch.where(s > 0, s, 0.1 * s).softmax(-1) @ v


def doubled(q, k, v, m):
    s = q @ k.mT
    return (s + s + m).softmax(-1) @ v


def shifted_square(q, k, v):
    return ((q @ k.mT).clamp(-3, 3) + 1).square().softmax(-1) @ v


def by_row_and_key(q, k, v):
    s = (q @ k.mT) * q.sum(-1, keepdim=True)
    return (s - k[..., 0][:, :, None, :] ** 2).relu().softmax(-1) @ v


def masked_then_bent(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    return F.elu(s).softmax(-1) @ v


def filled_between(q, k, v, kept):
    """What is added before a fill that is a score is no shift of all."""
    return (q @ k.mT + 5).masked_fill(~kept, 0.5).softmax(-1) @ v


def bent_upcast(q, k, v):
    return F.softsign((q @ k.mT).float()).softmax(-1).to(v.dtype) @ v


def with_sinks(q, k, v, m, sinks):
    """As gpt-oss."""
    s = torch.matmul(q, k.transpose(2, 3)) * 0.3 + m
    sinks = sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
    s = torch.cat([s, sinks], dim=-1)
    s = s - s.max(dim=-1, keepdim=True).values
    w = F.softmax(s, dim=-1, dtype=s.dtype)[..., :-1]
    return F.dropout(w, p=0.0).to(v.dtype) @ v


def scaled_sinks(q, k, v, sinks):
    column = sinks[None, :, None, None].expand(B, H, Q, 1)
    return (torch.cat((q @ k.mT, column), -1) * 0.5).softmax(-1)[:, :, :, :-1] @ v


def shift_beside_sinks(q, k, v, sinks):
    """A number that scores share and the sink does not."""
    column = sinks[None, :, None, None].expand(B, H, Q, 1)
    return torch.cat((q @ k.mT + 1.5, column), -1).softmax(-1)[..., :-1] @ v


def sinks_of_heads():
    return (torch.randn(H) * 2,)


def weighty_sinks(q, k, v, sinks):
    column = sinks[None, :, None, None].expand(B, H, Q, 1)
    return torch.cat((q @ k.mT, column), -1).softmax(-1) @ F.pad(v, (0, 0, 0, 1))


def sinks_of_rows(q, k, v, sinks):
    column = sinks[None, :, None, None] * q[..., :1]
    return torch.cat((q @ k.mT, column), -1).softmax(-1)[..., :-1] @ v


def sinks_below_keys(q, k, v, sinks):
    """Scores are spelled with rows and keys exchanged."""
    row = sinks[None, :, None, None].expand(B, H, 1, Q)
    return torch.cat((k @ q.mT, row), -2).softmax(-2)[..., :-1, :].mT @ v


def not_below(q, k, v, m):
    """As XGLM: the least number there is, as a tensor."""
    s = torch.max(q @ k.mT + m, torch.tensor(torch.finfo(q.dtype).min))
    return torch.maximum(s, torch.tensor(-1.0)).softmax(-1) @ v


def written_scores(q, k, v):
    s = q @ k.mT
    s[:, :, torch.arange(Q) > 3] = -1.0
    return s.softmax(-1) @ v


def off_by_one(q, k, v, kept, m):
    """``exp(x) / (1 + sum exp(x))``; a row that keeps no key is zeros."""
    e = (0.3 * (q @ k.mT) + m).masked_fill(~kept, -INF).exp()
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


def off_by_one_bounded(q, k, v, kept):
    """The same, whatever is taken from both exponents."""
    s = (q @ k.mT).masked_fill(~kept, -INF)
    m = s.amax(-1, keepdim=True).clamp(min=0)
    e = (s - m).exp()
    return (e / (e.sum(-1, keepdim=True) + torch.exp(-m))) @ v


def off_by_one_after(q, k, v):
    s = q @ k.mT
    m = s.detach().max(-1, keepdim=True).values
    e = (s - m).exp()
    return (e @ v) / ((0.0 - m).exp() + e.sum(-1)[..., None])


def off_by_three_in_twos(q, k, v):
    e = torch.exp2((q @ k.mT) * 0.7)
    total = e.sum(-1, keepdim=True)
    total += 3
    return (e / total) @ v


def column_of_zeros(q, k, v):
    s = 0.4 * (q @ k.mT)
    s = torch.cat([torch.zeros_like(s[..., :1]), s], -1)
    return s.softmax(-1)[..., 1:] @ v


def padded_with_a_half(q, k, v):
    s = F.pad(q @ k.mT, (0, 1), value=0.25) * 2
    return s.softmax(-1)[..., :-1] @ v


def sinks_first(q, k, v, sinks):
    """Before the keys, scores are exchanged on the way, and weights are split."""
    column = sinks.view(1, H, 1, 1).expand(B, H, 1, Q).mT
    s = torch.cat((column, (k @ q.mT).mT), 3) / 1.5
    return s.softmax(-1).split([1, K], dim=-1)[1] @ v


def sinks_of_groups(q, k, v, sinks):
    """Heads of queries that share keys have a dimension of their own."""
    q = q.unflatten(1, (2, 2))
    s = torch.einsum("bghqd,bgkd->bghkq", q, k)
    row = sinks[:, None, None].unflatten(0, (2, 2)).expand(B, 2, 2, 1, Q)
    w = torch.cat((s, row), -2).softmax(-2).narrow(-2, 0, K)
    return torch.einsum("bghkq,bgkd->bghqd", w, v).flatten(1, 2)


def sinks_repeated(q, k, v, sinks):
    column = sinks.reshape(1, -1, 1, 1).repeat(B, 1, Q, 1)
    return torch.cat((q @ k.mT, column), -1).softmax(-1).narrow(-1, 0, K) @ v


def sinks_held_as_columns(q, k, v, sinks):
    """A parameter that has the dimensions of scores, which one operation expands."""
    return torch.cat((q @ k.mT, sinks.expand(B, H, Q, 1)), -1).softmax(-1)[..., :-1] @ v


def columns_of(batches):
    return lambda: (torch.randn(batches, H, 1, 1) * 2,)


def sinks_beside_a_weak_fill(q, k, v, kept, sinks):
    column = sinks[None, :, None, None].expand(B, H, Q, 1)
    s = torch.cat(((q @ k.mT).masked_fill(~kept, -3.0), column), -1)
    return s.softmax(-1)[..., :-1] @ v


def sinks_of_one_batch(q, k, v, sinks):
    """Batches and heads are one dimension."""
    q, k, v = (side.flatten(0, 1) for side in (q, k, v))
    column = sinks.repeat(B)[:, None, None].expand(-1, Q, 1)
    w = torch.cat((torch.bmm(q, k.mT), column), -1).softmax(-1)
    return torch.bmm(w[..., :K], v)


def other_column_left_out(q, k, v, sinks):
    """Sinks stand before the keys, and the last key is left out."""
    column = sinks[None, :, None, None].expand(B, H, Q, 1)
    return torch.cat((column, q @ k.mT), -1).softmax(-1)[..., :-1] @ v


def sinks_of_batches(q, k, v, sinks):
    column = torch.stack((sinks, 2 * sinks))[:, :, None, None].expand(B, H, Q, 1)
    return torch.cat((q @ k.mT, column), -1).softmax(-1)[..., :-1] @ v


def a_row_more(q, k, v, sinks):
    """A row that is no query's, whose softmax is over keys."""
    row = sinks[None, :, None, None].expand(B, H, K, 1)
    return torch.cat((k @ q.mT, row), -1).softmax(-2)[..., :-1].mT @ v


def row_left_out(q, k, v, sinks):
    """The column of sinks stays, and the last row is left out."""
    column = sinks[None, :, None, None].expand(B, H, Q, 1)
    w = torch.cat((q @ k.mT, column), -1).softmax(-1).mT[..., :-1]
    return w.mT @ F.pad(v, (0, 0, 0, 1))


def exchanged_itself(q, k, v):
    """Scores are multiplied by those of rows and keys exchanged."""
    s = q @ k.mT
    return (s * s.mT).softmax(-1) @ v


def summed(q, k, v):
    s = q @ k.mT
    return (s * s.sum(-1, keepdim=True)).softmax(-1) @ v


def rounded_down(q, k, v):
    return ((q @ k.mT) // 2).softmax(-1) @ v


def special(q, k, v):
    return torch.special.erfcx(q @ k.mT).softmax(-1) @ v


def floored(q, k, v, mask):
    """By constant tensors, as older decoders of ``transformers`` do."""
    s = torch.maximum(torch.tensor(0.2), q @ k.mT) + mask
    return torch.max(s, torch.tensor(MIN)).softmax(-1) @ v


OWN = {
    "raised_of_two": Spelling(raised_of_two, "score_function", dead_rows),
    "floored": Spelling(floored, "score_function", dead_rows),
    "written_scores": Spelling(written_scores, "weak_fill"),
    "off_by_one": Spelling(off_by_one, "fused_sinks", pair(keep, bias)),
    "off_by_one_bounded": Spelling(off_by_one_bounded, "fused_sinks", keep),
    "exp_over_more_than_its_sum": Spelling(
        softmax_refusals.exp_over_more_than_its_sum, "fused_sinks"
    ),
    "off_by_one_shifted": Spelling(softmax_refusals.off_by_one, "fused_sinks"),
    "off_by_one_after": Spelling(off_by_one_after, "fused_sinks", operands=three),
    "off_by_three_in_twos": Spelling(off_by_three_in_twos, "fused_sinks"),
    "column_of_zeros": Spelling(column_of_zeros, "fused_sinks"),
    "padded_with_a_half": Spelling(padded_with_a_half, "fused_sinks", operands=bfloat),
    "soft_cap": Spelling(refusals.soft_cap, "score_function"),
    "scaled_by_row": Spelling(refusals.scaled_by_row, "score_function"),
    "filled_weakly": Spelling(refusals.filled_weakly, "weak_fill", keep),
    "sinks": Spelling(refusals.sinks, "fused_sinks"),
    "capped_in_place": Spelling(capped_in_place, "score_function", bias),
    "capped_then_causal": Spelling(capped_then_causal, "score_function", operands=square),
    "capped_and_told": Spelling(capped_and_told, "score_function", keep),
    "capped_groups": Spelling(capped_groups, "score_function", operands=grouped),
    "swish": Spelling(swish, "score_function"),
    "leaky": Spelling(leaky, "score_function", bias),
    "doubled": Spelling(doubled, "score_function", bias),
    "shifted_square": Spelling(shifted_square, "score_function"),
    "by_row_and_key": Spelling(by_row_and_key, "score_function"),
    "masked_then_bent": Spelling(masked_then_bent, "score_function", keep),
    "filled_between": Spelling(filled_between, "score_function", keep),
    "bent_upcast": Spelling(bent_upcast, "score_function", operands=bfloat),
    "with_sinks": Spelling(with_sinks, "fused_sinks", pair(bias, sinks_of_heads)),
    "scaled_sinks": Spelling(scaled_sinks, "fused_sinks", sinks_of_heads),
    "shift_beside_sinks": Spelling(shift_beside_sinks, "score_function", sinks_of_heads),
    "not_below": Spelling(not_below, "score_function", bias),
    "sinks_below_keys": Spelling(sinks_below_keys, "fused_sinks", sinks_of_heads),
    "sinks_first": Spelling(sinks_first, "fused_sinks", sinks_of_heads),
    "sinks_of_groups": Spelling(sinks_of_groups, "fused_sinks", sinks_of_heads, operands=grouped),
    "sinks_repeated": Spelling(sinks_repeated, "fused_sinks", sinks_of_heads),
    "sinks_held_as_columns": Spelling(sinks_held_as_columns, "fused_sinks", columns_of(1)),
    "sinks_beside_a_weak_fill": Spelling(
        sinks_beside_a_weak_fill, "weak_fill", pair(keep, sinks_of_heads)
    ),
    "sinks_of_one_batch": Spelling(sinks_of_one_batch, "fused_sinks", sinks_of_heads),
}
"""What a kernel of our own takes; the code is the reason why torch's attention does not, or that of
our op, which tells it of sinks."""

LEFT = {
    "weighty_sinks": Spelling(weighty_sinks, "!sinks", sinks_of_heads),
    "sinks_of_rows": Spelling(sinks_of_rows, "!sinks", sinks_of_heads),
    "sinks_of_batches": Spelling(sinks_of_batches, "!sinks", sinks_of_heads),
    "columns_of_batches": Spelling(sinks_held_as_columns, "!sinks", columns_of(B)),
    "other_column_left_out": Spelling(other_column_left_out, "!weights_changed", sinks_of_heads),
    "a_row_more": Spelling(a_row_more, "!score_function", sinks_of_heads),
    "row_left_out": Spelling(row_left_out, "!weights_changed", sinks_of_heads),
    "exchanged_itself": Spelling(exchanged_itself, "!score_function", operands=square),
    "summed": Spelling(summed, "!scores_read"),
    "rounded_down": Spelling(rounded_down, "!score_function"),
    "special": Spelling(special, "!score_function"),
}
"""What neither takes."""

SPEC = {
    "soft_cap": ("aten.tanh.default", "scale=0.2 "),
    "capped_then_causal": ("aten.tanh.default", "after=0 "),
    "capped_groups": ("aten.hardtanh.default", "groups=2 "),
    "with_sinks": ("sinks=1",),
    "off_by_one": ("sinks=1", "new_ones", "mul("),
    "padded_with_a_half": ("sinks=1", "float(", "0.5"),
}
"""What the spec of some has to say."""
