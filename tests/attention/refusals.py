"""Attention that is to be left as it is, and what is no attention: a line each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.attention.catalogue import Spelling, bias, keep, plain, square
from tests.attention.sizes import INF, B, D, H, K, Q
from tests.attention.softmax_refusals import (
    divided_after_and_read,
    divided_after_by_another_sum,
    divided_after_by_few_heads,
    divided_after_by_sums_of_rows,
    exp_normalized,
    exp_of_no_scores,
    exp_over_less_than_its_sum,
    exp_over_other_sum,
    exp_over_sum_of_a_finite_mask,
    exp_over_sum_of_rows,
    exp_times_a_mask,
    less_a_logarithm_of_earlier_scores,
    less_another_maximum,
    off_by_another_one,
    off_by_one_masked,
    off_by_one_of_another_base,
    over_bits_of_its_sum,
    powers_of_a_negative_number,
    powers_of_two_over_those_of_three,
    shifted_then_masked,
)


def filled_weakly(q, k, v, kept):
    return (q @ k.mT).masked_fill(~kept, -1e4).softmax(-1) @ v


def filled_above(q, k, v, kept):
    return (q @ k.mT).masked_fill(kept, INF).softmax(-1) @ v


def half():
    return plain(dtype=torch.float16)


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


def fused_expanded(q, k, v):
    """Nobody copies the head that is all of them."""
    k, v = (side[:, :1].expand(-1, q.shape[1], -1, -1) for side in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def soft_cap(q, k, v):
    return (5 * torch.tanh((q @ k.mT) / 5)).softmax(-1) @ v


def sinks(q, k, v):
    s = torch.cat([q @ k.mT, q.new_zeros(B, H, Q, 1)], dim=-1)
    s = s - s.max(dim=-1, keepdim=True).values
    return s.softmax(-1)[..., :-1] @ v


def batches_exchanged(q, k, v, m):
    """As many sequences as heads, so that only values tell them apart."""
    s = (q @ k.mT).transpose(0, 1) + m
    return s.softmax(-1).transpose(0, 1) @ v


def as_many_sequences_as_heads():
    return tuple(torch.cat((t, t.flip(0)))[:H] for t in plain())


def over_rows(q, k, v):
    return (q @ k.mT).softmax(-2) @ v


def over_heads(q, k, v):
    return (q @ k.mT).softmax(1) @ v


def weights_on_the_left(q, k, v):
    return torch.einsum("bhkq,bhqd->bhkd", (k @ q.mT).softmax(-2), v)


def weights_returned(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return w @ v, w


def weights_masked(q, k, v, m):
    return ((q @ k.mT).softmax(-1) * m) @ v


def summed_over_rows(q, k, v):
    return torch.einsum("bhqk,bhqd->bhkd", (q @ k.mT).softmax(-1), v)


def summed_over_heads(q, k, v):
    return torch.einsum("bhqk,bhd->bqkd", (q @ k.mT).softmax(-1), v[:, :, 0])


def values_of_each_row(q, k, v):
    return torch.einsum(
        "bhqk,bhqkd->bhqd", (q @ k.mT).softmax(-1), v[:, :, :, None] * k[:, :, None]
    )


def scores_read(q, k, v):
    s = q @ k.mT
    return (s * 2).softmax(-1) @ v + s.mean()


def scores_read_through_a_view(q, k, v):
    s = q @ k.mT
    s.flatten(2).mul_(2)
    return s.softmax(-1) @ v


def filled_through_an_earlier_view(q, k, v, kept):
    """The view is of scores that are scaled before it is filled."""
    s = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    heads = s.view(B, H, Q, K)
    s.mul_(0.3)
    heads.masked_fill_(~kept, -INF)
    return (s.softmax(-1) @ v.flatten(0, 1)).view(B, H, Q, D)


def filled_through_a_turned_view(q, k, v):
    s = q @ k.mT
    s.mT.masked_fill_(torch.ones(K, K, dtype=torch.bool).tril(-1), -INF)
    return s.softmax(-1) @ v


def filled_in_another_order(q, k, v):
    """All of them, but not row by row."""
    s = q @ k.mT
    s.view(B, H, K * K).masked_fill_(torch.arange(K * K) % 5 == 1, -INF)
    return s.softmax(-1) @ v


def copy_filled(q, k, v, kept):
    """Of what is filled the scores have nothing."""
    s = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    copy = s.clone().view(B, H, Q, K).masked_fill_(~kept, 1.0)
    return (s.softmax(-1) @ v.flatten(0, 1)).view(B, H, Q, D) + copy.sum()


def capped_after_a_write_through_a_view(q, k, v):
    s = q @ k.mT
    s.view(B * H, Q, K).mul_(0.5)
    return torch.tanh(s).softmax(-1) @ v


def overwritten(q, k, v):
    s = q @ k.mT
    s.view(B * H, Q, K).copy_(q.sum() * torch.ones(K))
    return s.softmax(-1) @ v


def over_heads_after_a_write_through_a_view(q, k, v):
    s = q @ k.mT
    s.view(B * H, Q, K).mul_(0.5)
    return s.softmax(1) @ v


def product_in_given_memory(q, k, v):
    memory = torch.zeros(B, H, Q, K)
    return torch.matmul(q, k.mT, out=memory).softmax(-1) @ v + memory.sum()


def powers_in_given_memory(q, k, v):
    memory = torch.zeros(B, H, Q, K)
    torch.pow(2.0, q @ k.mT, out=memory)
    return (memory / memory.sum(-1, keepdim=True)) @ v + memory.sum()


def result_in_given_memory(q, k, v):
    memory = torch.zeros(B, H, Q, D)
    torch.matmul((q @ k.mT).softmax(-1), v, out=memory)
    return memory * 2


def laid_out_like_scores(q, k, v):
    """What is viewed lies as scores do, whose last two dimensions are exchanged."""
    s = (k @ q.mT).mT
    ones = torch.ones_like(s)
    return s.softmax(-1) @ v * ones.mT.view(-1)[0]


def slice_filled_through_a_view(q, k, v):
    s = q @ k.mT
    s[..., 9:].fill_(-INF)
    return s.softmax(-1) @ v


def slice_lowered(q, k, v):
    s = q @ k.mT
    s[..., 9:] -= 1e9
    return s.softmax(-1) @ v


def every_other_key(q, k, v):
    s = q @ k.mT
    s[..., ::2] = -INF
    return s.softmax(-1) @ v


def numbers_in_a_slice(q, k, v):
    s = q @ k.mT
    s[..., 3:5] = torch.randn(2)
    return s.softmax(-1) @ v


def cut_and_put_together(q, k, v):
    s = q @ k.mT
    return torch.cat([s[..., :9], torch.full((B, H, Q, K - 9), -INF)], -1).softmax(-1) @ v


def summed_products_of_one_row(q, k, v):
    w = (q[:, :, :1] * k).sum(-1).softmax(-1)
    return (w[..., None] * v).sum(-2)


def one_row(q, k, v):
    return (k[0, 0] @ q[0, 0, 0]).softmax(-1) @ v[0, 0]


def item_of_a_place(q, k, v, kept):
    s = q @ k.mT
    s[:, :, kept[0, 0, 0, :3].long()] = -INF
    return s.softmax(-1) @ v


def item_of_others(q, k, v, kept):
    s = q @ k.mT
    s[:, kept[0, 0, 0, :H], 0] = -INF
    return s.softmax(-1) @ v


def item_of_all(q, k, v):
    s = torch.zeros(B, H, Q, K)
    s[:] = q @ k.mT
    return s.softmax(-1) @ v


def item_of_weights(q, k, v):
    s = q @ k.mT
    s[:] = s.softmax(-1)
    return s @ v


def item_of_no_scores(q, k, v):
    s = torch.zeros(B, H, Q, K)
    s[:] = q.sum()
    return s.softmax(-1) @ v


def dropped(q, k, v):
    return F.dropout((q @ k.mT).softmax(-1), p=0.5) @ v


def weights_on_the_right(q, k, v):
    return v.mT @ (q @ k.mT).softmax(-1)


def scaled_by_row(q, k, v):
    return ((q @ k.mT) * q.sum(-1, keepdim=True)).softmax(-1) @ v


def keys_change(q, k, v):
    k = k + 0
    w = (q @ k.mT).softmax(-1)
    k.zero_()
    return w @ v + k.sum()


def mask_changes(q, k, v, m):
    m = m + 0
    w = (q @ k.mT + m).softmax(-1)
    m.zero_()
    return w @ v + m.sum()


def written_over_a_mask(q, k, v, m):
    m = m.expand(B, H, Q, K).clone()
    m += q @ k.mT
    return m.softmax(-1) @ v + m.sum()


def narrowed(q, k, v):
    return (q @ k.mT).half().softmax(-1).float() @ v


def doubled(q, k, v):
    return (q @ k.mT).softmax(-1, dtype=torch.float64).float() @ v


def unlike(q, k, v):
    return (q @ k.mT).softmax(-1).bfloat16() @ v.bfloat16()


def half_mask(q, k, v, kept):
    return (q @ k.mT + torch.where(kept, 0.0, -65504.0).half()).softmax(-1) @ v


def half_product_filled(q, k, v, kept):
    """What was a product is a mask when it is added."""
    m = q @ k.mT
    m.masked_fill_(~kept, -65504.0)
    return (q @ k.mT + m).softmax(-1) @ v


def module(q, k, v):
    x = q.flatten(0, 1)
    w = torch.eye(D)
    return F.multi_head_attention_forward(
        x, x, x, D, 2, w.repeat(3, 1), None, None, None, False, 0.0, w, None, need_weights=False
    )[0]


def routing(q, k, v):
    scores, index = F.softmax(q.flatten(0, 2) @ v[0, 0].mT, -1).topk(2, -1)
    return scores * index


LEFT = {
    "fused": Spelling(fused, "=fused_already", operands=square),
    "fused_expanded": Spelling(fused_expanded, "=fused_already"),
    "soft_cap": Spelling(soft_cap, "!score_function"),
    "item_of_a_place": Spelling(item_of_a_place, "!hidden_write", keep),
    "filled_through_an_earlier_view": Spelling(
        filled_through_an_earlier_view, "!scores_read", keep
    ),
    "filled_through_a_turned_view": Spelling(
        filled_through_a_turned_view, "!hidden_write", operands=square
    ),
    "filled_in_another_order": Spelling(filled_in_another_order, "!hidden_write", operands=square),
    "copy_filled": Spelling(copy_filled, "!scores_read", keep),
    "capped_after_a_write_through_a_view": Spelling(
        capped_after_a_write_through_a_view, "!hidden_write"
    ),
    "overwritten": Spelling(overwritten, "!score_function"),
    "over_heads_after_a_write_through_a_view": Spelling(
        over_heads_after_a_write_through_a_view, "!hidden_write"
    ),
    "less_a_logarithm_of_earlier_scores": Spelling(
        less_a_logarithm_of_earlier_scores, "!unread_softmax"
    ),
    "product_in_given_memory": Spelling(product_in_given_memory, "!hidden_write"),
    "powers_in_given_memory": Spelling(powers_in_given_memory, "!hidden_write"),
    "result_in_given_memory": Spelling(result_in_given_memory, "!hidden_write"),
    "laid_out_like_scores": Spelling(laid_out_like_scores, "!scores_read"),
    "over_bits_of_its_sum": Spelling(over_bits_of_its_sum, "!unread_softmax"),
    "slice_filled_through_a_view": Spelling(slice_filled_through_a_view, "!hidden_write"),
    "slice_lowered": Spelling(slice_lowered, "!hidden_write"),
    "every_other_key": Spelling(every_other_key, "!hidden_write"),
    "numbers_in_a_slice": Spelling(numbers_in_a_slice, "!hidden_write"),
    "cut_and_put_together": Spelling(cut_and_put_together, "!product"),
    "summed_products_of_one_row": Spelling(summed_products_of_one_row, "!product"),
    "one_row": Spelling(one_row, "!product"),
    "exp_normalized": Spelling(exp_normalized, "!unread_softmax"),
    "exp_times_a_mask": Spelling(exp_times_a_mask, "!unread_softmax", keep),
    "powers_of_two_over_those_of_three": Spelling(
        powers_of_two_over_those_of_three, "!unread_softmax"
    ),
    "item_of_others": Spelling(item_of_others, "!hidden_write", keep),
    "item_of_all": Spelling(item_of_all, "!hidden_write"),
    "item_of_weights": Spelling(item_of_weights, "!weights_changed"),
    "item_of_no_scores": Spelling(item_of_no_scores, ""),
    "scaled_by_row": Spelling(scaled_by_row, "!score_function"),
    "exp_over_sum_of_a_finite_mask": Spelling(exp_over_sum_of_a_finite_mask, "!dead_rows", keep),
    "shifted_then_masked": Spelling(shifted_then_masked, "!dead_rows", keep),
    "exp_over_other_sum": Spelling(exp_over_other_sum, "!unread_softmax"),
    "exp_over_less_than_its_sum": Spelling(exp_over_less_than_its_sum, "!unread_softmax"),
    "off_by_one_of_another_base": Spelling(off_by_one_of_another_base, "!unread_softmax"),
    "exp_of_no_scores": Spelling(exp_of_no_scores, ""),
    "powers_of_a_negative_number": Spelling(powers_of_a_negative_number, ""),
    "off_by_another_one": Spelling(off_by_another_one, "!unread_softmax"),
    "batches_exchanged": Spelling(
        batches_exchanged,
        "!score_function",
        lambda: (torch.randn(H, H, Q, K),),
        as_many_sequences_as_heads,
    ),
    "off_by_one_of_dead_rows": Spelling(off_by_one_masked, "!dead_rows", keep),
    "divided_after_by_another_sum": Spelling(divided_after_by_another_sum, "!unread_softmax"),
    "divided_after_by_sums_of_rows": Spelling(
        divided_after_by_sums_of_rows, "!unread_softmax", operands=lambda: plain(Q, D)
    ),
    "divided_after_and_read": Spelling(divided_after_and_read, "!scores_read"),
    "divided_after_by_few_heads": Spelling(divided_after_by_few_heads, "!unread_softmax"),
    "exp_over_sum_of_rows": Spelling(exp_over_sum_of_rows, "!softmax_dim", operands=square),
    "less_another_maximum": Spelling(less_another_maximum, "!scores_read", operands=square),
    "over_rows": Spelling(over_rows, "!softmax_dim", operands=square),
    "over_heads": Spelling(over_heads, "!softmax_dim"),
    "weights_on_the_left": Spelling(weights_on_the_left, "!softmax_dim", operands=square),
    "weights_returned": Spelling(weights_returned, "!weights_read"),
    "weights_masked": Spelling(weights_masked, "!weights_changed", more=bias),
    "weights_on_the_right": Spelling(weights_on_the_right, "!softmax_dim", operands=square),
    "summed_over_rows": Spelling(summed_over_rows, "!softmax_dim", operands=square),
    "summed_over_heads": Spelling(summed_over_heads, "!softmax_dim", operands=square),
    "values_of_each_row": Spelling(values_of_each_row, "!product", operands=square),
    "scores_read": Spelling(scores_read, "!scores_read"),
    "scores_read_through_a_view": Spelling(scores_read_through_a_view, "!hidden_write"),
    "dropped": Spelling(dropped, "!dropout"),
    "keys_change": Spelling(keys_change, "!mutated_operand"),
    "mask_changes": Spelling(mask_changes, "!mutated_operand", more=bias),
    "written_over_a_mask": Spelling(written_over_a_mask, "!mutated_operand", more=bias),
    "narrowed": Spelling(narrowed, "!narrowed_scores"),
    "doubled": Spelling(doubled, "!wide_softmax"),
    "unlike": Spelling(unlike, "!mixed_dtypes"),
    "half_mask": Spelling(half_mask, "!half_mask", keep, half),
    "half_product_filled": Spelling(half_product_filled, "!half_mask", keep, half),
    "filled_weakly": Spelling(filled_weakly, "!weak_fill", more=keep),
    "filled_above": Spelling(filled_above, "!weak_fill", more=keep),
    "module": Spelling(module, "=fused_already"),
    "routing": Spelling(routing, ""),
}
