"""Spellings of attention: how each is to be found, and what is to be refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from tests.attention.mask_spellings import (
    added,
    added_like_scores,
    added_then_scaled,
    additive,
    causal,
    causal_by_indices,
    causal_off_by_one,
    chosen,
    chosen_by_method,
    expanded_as_scores,
    filled,
    filled_and_added,
    filled_finite,
    filled_higher_then_padded,
    filled_then_padded,
    filled_then_raised,
    filled_through_a_view,
    infinite,
    item_filled,
    items_filled,
    keys_first,
    keys_first_causal,
    keys_first_mask,
    made_like_scores,
    nothing_masked,
    raised,
    raised_causal,
    rows_filled,
    slices_filled,
    slices_filled_keys_first,
    triangle_filled_by_slices,
    upcast_then_added,
    window,
    written_causal,
    written_mask,
    written_to_after_a_choice,
)
from tests.attention.repeated_heads import (
    fused_repeated,
    fused_tiled,
    grouped_queries,
    interleaved,
    keys_repeated_alone,
    one_head_expanded,
    one_head_of_one_batch,
    repeated_otherwise,
)
from tests.attention.sizes import INF, MIN, B, D, G, H, K, Q
from tests.attention.softmax_spellings import (
    exp_divided_after,
    exp_divided_after_in_place,
    exp_less_a_logarithm,
    exp_of_logarithms,
    exp_of_shifted,
    exp_over_sum,
    exp_times_inverse,
    exp_times_one_over,
    exp_twice,
    less_a_logarithm_of_what_a_view_wrote,
    log_softmax,
    powers_of_a_number,
    powers_of_e,
    powers_of_two,
    softmin,
    special_log_softmax,
    special_logarithm,
)


@dataclass(frozen=True)
class Spelling:
    """A function of queries, keys, values, and what else ``more`` gives."""

    function: Callable[..., Any]
    code: str = "fused"
    """``!code`` of a refused site, ``=code`` of a kept one; empty: no site."""
    more: Callable[[], tuple[Any, ...]] = tuple
    operands: Callable[[], tuple[Any, ...]] | None = None
    """What stands for queries, keys and values; None: ``plain``."""
    says: str = ""
    """What the graph is to hold after the rewrite; of a refused site, its reason."""


def plain(rows=Q, keys=K, dtype=torch.float32):
    shapes = [(B, H, rows, D), (B, H, keys, D), (B, H, keys, D)]
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def square():
    return plain(K, K)


def three():
    return tuple(t.flatten(0, 1) for t in plain())


def two():
    return tuple(t[0, 0] for t in plain())


def sequence_first():
    return tuple(t.transpose(1, 2).contiguous() for t in plain())


def grouped():
    q, k, v = plain()
    return q, k[:, :G].contiguous(), v[:, :G].contiguous()


def five():
    q, k, v = grouped()
    return q.unflatten(1, (G, H // G)), k, v


def bfloat():
    return plain(dtype=torch.bfloat16)


def bias():
    return (torch.randn(B, 1, Q, K),)


def keep():
    """Half of all keys; the first row of the first batch keeps none, the second all."""
    kept = torch.rand(B, 1, Q, K) > 0.5
    kept[0, :, 0], kept[:, :, 1] = False, True
    return (kept,)


def functional(q, k, v):
    return torch.matmul(F.softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(D), dim=-1), v)


def methods(q, k, v):
    return q.matmul(k.swapaxes(2, 3)).mul(0.3).softmax(3).matmul(v)


def operators(q, k, v):
    return torch.softmax(0.3 * (q @ k.mT), 3) @ v


def in_place(q, k, v, m):
    s = q @ k.mT
    s /= 3.0
    s += m
    s.mul_(0.5)
    return s.softmax(-1) @ v


def written_and_ignored(q, k, v, m):
    s = q @ k.permute(0, 1, 3, 2)
    s.mul_(0.5)
    s.add_(m, alpha=2.0)
    s.masked_fill_(m > 1, -INF)
    return F.softmax(s, -1) @ v


def einsum(q, k, v):
    w = torch.einsum("bhqd,bhkd->bhqk", q * 0.5, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", w, v)


def einsum_sequence_first(q, k, v):
    w = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", w, v)


def einsum_ellipsis(q, k, v):
    w = torch.einsum("...qd, ...kd -> ...qk", [q, k]).softmax(-1)
    return torch.einsum("...qk,...kd->...qd", w, v)


def einsum_keys_first(q, k, v):
    return torch.einsum("bhkd,bhqd->bhqk", k, q).softmax(-1) @ v


def einsum_grouped(q, k, v):
    w = torch.einsum("bhgqd,bhkd->bhgqk", q, k).softmax(-1)
    return torch.einsum("bhgqk,bhkd->bhgqd", w, v)


def bmm(q, k, v):
    return torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=2), v)


def baddbmm(q, k, v, m):
    s = torch.baddbmm(m.expand(B, H, Q, K).reshape(B * H, Q, K), q, k.mT, beta=0.5, alpha=0.3)
    return torch.bmm(s.softmax(-1), v)


def baddbmm_without(q, k, v):
    s = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=0.3)
    return torch.bmm(s.softmax(-1), v)


def regrouped(q, k, v, m):
    """As Bloom: heads and batches are one where products are, two where the mask is."""
    a, b, c = (t.reshape(B * H, -1, D) for t in (q, k, v))
    s = torch.baddbmm(m[:, 0, :1].repeat(H, 1, 1), a, b.mT, alpha=0.3).view(B, H, Q, K) + m
    return torch.bmm(s.softmax(-1).view(B * H, Q, K), c).view(B, H, Q, D)


def matrices(q, k, v):
    return (q @ k.t()).softmax(-1) @ v


def upcast(q, k, v):
    s = q @ k.mT
    return F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def upcast_operands(q, k, v):
    s = (q.float() @ k.float().transpose(-1, -2)) * 0.3
    return s.softmax(-1).type(v.dtype) @ v


def mm(q, k, v):
    return torch.mm(torch.mm(q, k.t()).softmax(1), v)


def idle_dropout(q, k, v):
    w = F.dropout((q @ k.mT).softmax(-1), p=0.0, training=True)
    return F.dropout(w, p=0.3, training=False, inplace=True) @ v


def matrices_by_name(q, k, v):
    return torch.mm(torch.mm(q, k.t()).softmax(1), v)


def transposed_result(q, k, v):
    return functional(q, k, v).transpose(1, 2).reshape(B, Q, H * D)


def viewed_result(q, k, v):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return functional(q, k, v).view(B * H, Q, D) + 1


def sequence_first_operands(q, k, v):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return (q @ k.transpose(2, 3)).softmax(-1) @ v


def one_batch_of_keys(q, k, v):
    return (q @ k[:1].mT).softmax(-1) @ v[:1]


def in_checkpoint(q, k, v):
    return checkpoint(functional, q, k, v, use_reentrant=False)


SEEN: set[tuple[bool, str]] = set()
"""What ``policy`` was asked about: whether while computing again, and the op."""


def policy(ctx, op, *arguments, **named):
    """Save the attention, whichever op it is, and nothing else."""
    SEEN.add((ctx.is_recompute, str(op)))
    is_attention = "attention" in str(op)
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE


def in_selective_checkpoint(q, k, v):
    """Of another graph than ``in_checkpoint``: one that was compiled before asks no policy."""
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(operators, q, k, v, use_reentrant=False, context_fn=contexts)


def twice(q, k, v):
    return functional(functional(q, k, v), k, v)


def einsum_values_first(q, k, v):
    return torch.einsum("bhkd,bhqk->bhqd", v, (q @ k.mT).softmax(-1))


def einsum_of_one_head_of_keys(q, k, v):
    """As many rows as heads, which no size tells apart: the mutant takes heads for rows."""
    w = torch.einsum("bhqd,bkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bkd->bqhd", w, v).flatten(2)


def one_head_of_keys():
    q, k, v = plain(H)
    return q, k[:, 0].contiguous(), v[:, 0].contiguous()


def one_head_of_keys_and_other_rows():
    q, k, v = plain()
    return q, k[:, 0].contiguous(), v[:, 0].contiguous()


def values_change_before(q, k, v):
    v = v + 0
    w = (q @ k.mT).softmax(-1)
    v.mul_(2)
    return w @ v


def scores_rows_first(q, k, v, m):
    """``[batch, rows, heads, keys]``, and a mask laid out alike."""
    s = 0.3 * torch.einsum("bqhd,bkhd->bqhk", q, k) + m.transpose(1, 2)
    return torch.einsum("bqhk,bkhd->bqhd", s.softmax(-1), v)


def scores_heads_last(q, k, v, m):
    s = torch.einsum("bqhd,bkhd->bqkh", q, k) + m.permute(0, 2, 3, 1)
    return torch.einsum("bqkh,bkhd->bqhd", s.softmax(2), v)


def scores_permuted(q, k, v, m):
    s = torch.einsum("bqhd,bkhd->bqhk", q, k).permute(0, 2, 1, 3) + m
    return torch.einsum("bqhk,bkhd->bqhd", s.softmax(-1).transpose(1, 2), v)


def batches():
    """Two more than a kernel has."""
    return tuple(t.unflatten(1, (2, 2))[None] for t in plain())


def pair(*makers):
    return lambda: tuple(t for maker in makers for t in maker())


def padding():
    """Of the first keys of one sequence, and of all of the other."""
    mask = torch.zeros(B, 1, 1, K)
    mask[0, ..., :5], mask[1] = MIN, MIN
    return (mask,)


def lower():
    return (torch.ones(1, 1, Q, K, dtype=torch.bool).tril(),)


def all_but_a_row():
    return (torch.arange(Q).ne(2)[:, None].expand(Q, K),)


def dead_rows():
    """What is added: one row is at a floor, one below."""
    mask = torch.where(torch.rand(B, 1, Q, K) > 0.3, 0.0, MIN)
    mask[0, 0, 2:4] = torch.tensor([MIN, -INF])[:, None]
    return (mask,)


REWRITTEN = {
    "functional": Spelling(functional),
    "methods": Spelling(methods),
    "operators": Spelling(operators),
    "in_place": Spelling(in_place, more=bias),
    "written_and_ignored": Spelling(written_and_ignored, more=bias),
    "einsum": Spelling(einsum),
    "einsum_sequence_first": Spelling(einsum_sequence_first, operands=sequence_first),
    "einsum_ellipsis": Spelling(einsum_ellipsis),
    "einsum_keys_first": Spelling(einsum_keys_first),
    "einsum_values_first": Spelling(einsum_values_first),
    "einsum_of_one_head_of_keys": Spelling(einsum_of_one_head_of_keys, operands=one_head_of_keys),
    "einsum_of_one_head_of_keys_and_other_rows": Spelling(
        einsum_of_one_head_of_keys, operands=one_head_of_keys_and_other_rows
    ),
    "einsum_grouped": Spelling(einsum_grouped, operands=five),
    "bmm": Spelling(bmm, operands=three),
    "baddbmm": Spelling(baddbmm, more=bias, operands=three),
    "baddbmm_without": Spelling(baddbmm_without, operands=three),
    "regrouped": Spelling(regrouped, more=bias),
    "matrices": Spelling(matrices, operands=two),
    "upcast": Spelling(upcast, operands=bfloat),
    "upcast_operands": Spelling(upcast_operands, operands=bfloat),
    "exp_over_sum": Spelling(exp_over_sum, more=keep),
    "exp_of_shifted": Spelling(exp_of_shifted, more=keep),
    "exp_twice": Spelling(exp_twice),
    "exp_of_logarithms": Spelling(exp_of_logarithms),
    "log_softmax": Spelling(log_softmax),
    "special_log_softmax": Spelling(special_log_softmax),
    "exp_times_inverse": Spelling(exp_times_inverse, more=keep),
    "exp_times_one_over": Spelling(exp_times_one_over),
    "exp_divided_after": Spelling(exp_divided_after, more=keep),
    "exp_divided_after_in_place": Spelling(exp_divided_after_in_place, operands=three),
    "mm": Spelling(mm, operands=two),
    "added": Spelling(added, more=bias),
    "added_number": Spelling(added, more=lambda: (torch.randn(()),)),
    "added_to_each_head": Spelling(
        added, more=lambda: (torch.randn(H, 1, K),), says="unsqueeze(%2, 0)"
    ),
    "narrow_mask": Spelling(added, more=lambda: tuple(m.bfloat16() for m in bias())),
    "wide_mask": Spelling(upcast_then_added, more=bias, operands=bfloat),
    "added_then_scaled": Spelling(added_then_scaled, more=bias),
    "filled": Spelling(filled, more=keep),
    "filled_finite": Spelling(filled_finite, more=keep),
    "filled_and_added": Spelling(filled_and_added, more=pair(keep, bias)),
    "filled_then_padded": Spelling(filled_then_padded, more=pair(lower, padding)),
    "filled_higher_then_padded": Spelling(
        filled_higher_then_padded, more=pair(all_but_a_row, padding)
    ),
    "chosen": Spelling(chosen, more=keep),
    "chosen_by_method": Spelling(chosen_by_method, more=keep),
    "additive": Spelling(additive, more=keep),
    "infinite": Spelling(infinite, more=keep),
    "raised": Spelling(raised, more=dead_rows),
    "filled_then_raised": Spelling(filled_then_raised, more=keep),
    "raised_causal": Spelling(raised_causal, operands=square, says="is_causal=True"),
    "causal": Spelling(causal, operands=square, says="is_causal=True"),
    "causal_by_indices": Spelling(causal_by_indices, operands=square, says="is_causal=True"),
    "keys_first": Spelling(keys_first, more=bias, says="attn_mask=%2"),
    "keys_first_mask": Spelling(keys_first_mask, more=bias, says="contiguous("),
    "keys_first_causal": Spelling(keys_first_causal, operands=square, says="is_causal=True"),
    "window": Spelling(window, operands=square, says="is_causal=False"),
    "causal_off_by_one": Spelling(causal_off_by_one, operands=square, says="is_causal=False"),
    "written_mask": Spelling(written_mask, operands=square, says="is_causal=True"),
    "written_causal": Spelling(written_causal, operands=square, says="is_causal=False"),
    "nothing_masked": Spelling(nothing_masked, says="attn_mask=None"),
    "idle_dropout": Spelling(idle_dropout),
    "grouped_queries": Spelling(
        grouped_queries, more=bias, operands=grouped, says="enable_gqa=True"
    ),
    "interleaved": Spelling(interleaved, operands=grouped, says="enable_gqa=True"),
    "repeated_otherwise": Spelling(repeated_otherwise, operands=grouped, says="enable_gqa=False"),
    "keys_repeated_alone": Spelling(keys_repeated_alone, operands=grouped, says="enable_gqa=False"),
    "one_head_expanded": Spelling(one_head_expanded, says="enable_gqa=True"),
    "one_head_of_one_batch": Spelling(one_head_of_one_batch, says="enable_gqa=False"),
    "fused_tiled": Spelling(fused_tiled, "fused_groups", says="enable_gqa=True"),
    "matrices_by_name": Spelling(matrices_by_name, operands=two),
    "special_logarithm": Spelling(special_logarithm),
    "transposed_result": Spelling(transposed_result),
    "viewed_result": Spelling(viewed_result, operands=sequence_first),
    "sequence_first_operands": Spelling(sequence_first_operands, operands=sequence_first),
    "one_batch_of_keys": Spelling(one_batch_of_keys),
    "fused_repeated": Spelling(
        fused_repeated, "fused_groups", keep, grouped, says="enable_gqa=True"
    ),
    "scores_rows_first": Spelling(scores_rows_first, more=bias, operands=sequence_first),
    "scores_heads_last": Spelling(scores_heads_last, more=bias, operands=sequence_first),
    "scores_permuted": Spelling(scores_permuted, more=bias, operands=sequence_first),
    "batches": Spelling(added, more=bias, operands=batches),
    "powers_of_two": Spelling(powers_of_two),
    "item_filled": Spelling(item_filled),
    "items_filled": Spelling(items_filled, more=keep),
    "rows_filled": Spelling(rows_filled, more=keep),
    "powers_of_a_number": Spelling(powers_of_a_number),
    "powers_of_e": Spelling(powers_of_e),
    "exp_less_a_logarithm": Spelling(exp_less_a_logarithm),
    "softmin": Spelling(softmin),
    "slices_filled": Spelling(slices_filled),
    "slices_filled_keys_first": Spelling(slices_filled_keys_first),
    "triangle_filled_by_slices": Spelling(
        triangle_filled_by_slices, operands=square, says="is_causal=True"
    ),
    "expanded_as_scores": Spelling(expanded_as_scores, more=keep),
    "made_like_scores": Spelling(made_like_scores, operands=square, says="is_causal=True"),
    "added_like_scores": Spelling(added_like_scores, more=keep),
    "less_a_logarithm_of_what_a_view_wrote": Spelling(less_a_logarithm_of_what_a_view_wrote),
    "written_to_after_a_choice": Spelling(written_to_after_a_choice, more=keep),
    "filled_through_a_view": Spelling(filled_through_a_view, more=keep),
    "values_change_before": Spelling(values_change_before),
}
