"""Weights that are made zeros behind their softmax."""

from __future__ import annotations

import torch

from tests.attention.catalogue import Spelling, bias, keep, pair, square
from tests.attention.sizes import INF, MIN, B, D, H, K, Q


def keep_of_squares():
    return (torch.rand(K, K) > 0.5,)


def masked_again(q, k, v, kept):
    hidden = ~kept
    w = (q @ k.mT).masked_fill(hidden, -INF).softmax(-1)
    return w.masked_fill(hidden, 0.0) @ v


def masked_again_finite(q, k, v, kept):
    hidden = kept.eq(0)
    w = (q @ k.mT).masked_fill(hidden, MIN).softmax(-1)
    return w.masked_fill_(hidden, 0.0) @ v


def chosen_again(q, k, v, kept):
    w = torch.where(kept, q @ k.mT, -1e9).softmax(-1)
    return torch.where(~kept, 0.0, w) @ v


def multiplied_again(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    return (w * kept) @ v


def multiplied_by_numbers(q, k, v, kept):
    w = (q @ k.mT).masked_fill(torch.logical_not(kept), MIN).softmax(-1)
    return (kept.to(w.dtype) * w) @ v


def with_a_shifted_product(q, k, v, kept):
    """As in a Conformer of ESPnet."""
    shifted = torch.cat([q.new_zeros(B, H, Q, 1), q @ (0.5 * k).mT], dim=-1)
    shifted = shifted.view(B, H, K + 1, Q)[:, :, 1:].view(B, H, Q, K)
    s = ((q @ k.mT + shifted) / D**0.5).masked_fill(~kept, MIN)
    return s.softmax(-1).masked_fill(~kept, 0.0) @ v


def causal_again(q, k, v):
    later = torch.ones(K, K, dtype=torch.bool).triu(1)
    w = (q @ k.mT).masked_fill(later, -INF).softmax(-1)
    return w.masked_fill(later, 0) @ v


def nan_to_num(q, k, v, kept):
    return torch.nan_to_num((q @ k.mT).masked_fill(~kept, -INF).softmax(-1)) @ v


def nan_to_num_of_a_mask(q, k, v, kept, m):
    s = q @ k.mT + m + torch.where(kept, 0.0, -INF)
    return s.softmax(-1).nan_to_num(0.0) @ v


def nan_filled(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    return w.masked_fill(torch.isnan(w), 0) @ v


def nan_chosen(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    return torch.where(w.isnan(), 0.0, w) @ v


def nan_to_num_of_finite_fills(q, k, v, kept):
    """Rows without a key are the mean of all values, and no NaN."""
    return (q @ k.mT).masked_fill(~kept, MIN).softmax(-1).nan_to_num() @ v


def asked_of_scores(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    return s.softmax(-1).masked_fill((s == -INF).all(-1, keepdim=True), 0.0) @ v


def asked_as_torch_does(q, k, v, kept):
    """In its decompositions."""
    s = q @ k.mT + torch.where(kept, 0.0, -INF)
    w = s.softmax(-1)
    has_key = torch.any(s.eq(-INF).logical_not(), dim=-1, keepdim=True)
    return torch.where(has_key.logical_not(), torch.zeros_like(w), w) @ v


def asked_of_doubles(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    w = s.softmax(-1)
    zeros = torch.zeros_like(w, dtype=torch.float64)
    return torch.where((s == -INF).all(-1, keepdim=True), zeros, w) @ v.double()


def asked_of_some_keys(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    return s.softmax(-1).masked_fill((s == -INF).any(-1, keepdim=True), 0.0) @ v


def asked_for_a_key(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    return s.softmax(-1).masked_fill((s != -INF).any(-1, keepdim=True), 0.0) @ v


def asked_whether_it_sees_all(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    return s.softmax(-1).masked_fill((s != -INF).all(-1, keepdim=True), 0.0) @ v


def asked_and_kept(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    return torch.where((s == -INF).all(-1, keepdim=True), s.softmax(-1), 0.0) @ v


def asked_of_columns(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    return s.softmax(-1).masked_fill((s == -INF).all(-2, keepdim=True), 0.0) @ v


def asked_before_the_mask(q, k, v, kept):
    s = q @ k.mT
    w = s.masked_fill(~kept, -INF).softmax(-1)
    return w.masked_fill((s == -INF).all(-1, keepdim=True), 0.0) @ v


def asked_for_a_number(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, MIN)
    return s.softmax(-1).masked_fill((s == MIN).all(-1, keepdim=True), 0.0) @ v


def asked_and_filled_with_ones(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    w = s.softmax(-1)
    ones = torch.zeros_like(w)
    ones.add_(1.0)
    return torch.where((s == -INF).all(-1, keepdim=True), ones, w) @ v


def asked_and_made_of_ones(q, k, v, kept):
    s = (q @ k.mT).masked_fill(~kept, -INF)
    w = s.softmax(-1)
    return torch.where((s == -INF).all(-1, keepdim=True), torch.full_like(w, 1.0), w) @ v


def asked_and_told(q, k, v, kept):
    """Somebody else reads which rows keep a key."""
    s = (q @ k.mT).masked_fill(~kept, -INF)
    hidden = (s == -INF).all(-1, keepdim=True)
    return s.softmax(-1).masked_fill(hidden, 0.0) @ v + hidden


def nan_to_one(q, k, v, kept):
    return (q @ k.mT).masked_fill(~kept, -INF).softmax(-1).nan_to_num(1.0) @ v


def masked_otherwise(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    return w.masked_fill(~kept.flip(-1), 0.0) @ v


def masked_the_other_way(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    return w.masked_fill(kept, 0.0) @ v


def masked_alone(q, k, v, kept):
    return (q @ k.mT).softmax(-1).masked_fill(~kept, 0.0) @ v


def masked_after_a_change(q, k, v, kept):
    kept = kept.clone()
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    kept.logical_not_()
    return w.masked_fill(~kept, 0.0) @ v


def masked_beside_another_mask(q, k, v, kept, m):
    """Where the other is minus infinity too, and the first finite, a hidden key may weigh all."""
    hidden = ~kept
    s = (q @ k.mT).masked_fill(m > 0, -INF).masked_fill(hidden, MIN)
    return s.softmax(-1).masked_fill(hidden, 0.0) @ v


def masked_beside_a_constant(q, k, v, kept):
    """Which hides as much by a finite number: where a row is left no key, all share its weight."""
    later = torch.full((Q, K), MIN).triu(1)
    s = (q @ k.mT + later).masked_fill(~kept, MIN)
    return s.softmax(-1).masked_fill(~kept, 0.0) @ v


def masked_before_rows_and_heads_change_places(q, k, v, kept):
    """As many heads as rows: the same tensor is of heads before, and of rows behind."""
    kept = kept[0, 0, :H]
    s = torch.einsum("bhqd,bhkd->bqhk", q[:, :, :H], k).masked_fill(~kept, -INF)
    w = s.transpose(1, 2).softmax(-1)
    return w.masked_fill(~kept, 0.0) @ v


def masked_before_they_are_turned(q, k, v, kept):
    """As many rows as keys: what is of rows and keys before is of keys and rows behind."""
    w = (k @ q.mT).masked_fill(~kept, -INF).softmax(-2).mT
    return w.masked_fill(~kept, 0.0) @ v


def masked_while_they_are_turned(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1).mT
    return w.masked_fill(~kept, 0.0).mT @ v


def masked_of_a_cut_number(q, k, v, m):
    """What is no zero may be one as a whole number."""
    w = (q @ k.mT).masked_fill(m.to(torch.bool), -INF).softmax(-1)
    return w.masked_fill(m.to(torch.int32).to(torch.bool), 0.0) @ v


def masked_weakly(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -1.0).softmax(-1)
    return w.masked_fill(~kept, 0.0) @ v


def masked_to_one(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    return w.masked_fill(~kept, 1.0) @ v


def renormalized(q, k, v, kept):
    w = (q @ k.mT).softmax(-1) * kept
    return (w / (w.sum(-1, keepdim=True) + 1e-6)) @ v


def nan_filled_by_another(q, k, v, kept):
    w = (q @ k.mT).masked_fill(~kept, -INF).softmax(-1)
    return w.masked_fill(torch.isinf(w), 0) @ v


def nan_after_a_function(q, k, v):
    """Which alone leaves rows no key."""
    return torch.log(torch.relu(q @ k.mT - 9)).softmax(-1).nan_to_num() @ v


def nan_before_a_function(q, k, v, kept):
    gain = torch.linspace(0.5, 1, H).view(H, 1, 1).to(q.dtype)
    s = (q @ k.mT).masked_fill(~kept, -INF) * gain
    return s.softmax(-1).nan_to_num() @ v


ZEROED = {
    "masked_again": Spelling(masked_again, more=keep),
    "masked_again_finite": Spelling(masked_again_finite, more=keep),
    "chosen_again": Spelling(chosen_again, more=keep),
    "multiplied_again": Spelling(multiplied_again, more=keep),
    "multiplied_by_numbers": Spelling(multiplied_by_numbers, more=keep),
    "with_a_shifted_product": Spelling(with_a_shifted_product, more=keep),
    "causal_again": Spelling(causal_again, operands=square, says="is_causal=True"),
    "asked_of_scores": Spelling(asked_of_scores, more=keep),
    "asked_as_torch_does": Spelling(asked_as_torch_does, more=keep),
    "nan_to_num": Spelling(nan_to_num, more=keep),
    "nan_to_num_of_a_mask": Spelling(nan_to_num_of_a_mask, more=pair(keep, bias)),
    "nan_filled": Spelling(nan_filled, more=keep),
    "nan_chosen": Spelling(nan_chosen, more=keep),
    "nan_to_num_of_finite_fills": Spelling(nan_to_num_of_finite_fills, more=keep),
}
CHANGED = {
    "asked_of_doubles": Spelling(asked_of_doubles, "!weights_changed", keep),
    "asked_of_some_keys": Spelling(asked_of_some_keys, "!scores_read", keep),
    "asked_for_a_key": Spelling(asked_for_a_key, "!scores_read", keep),
    "asked_whether_it_sees_all": Spelling(asked_whether_it_sees_all, "!scores_read", keep),
    "asked_and_kept": Spelling(asked_and_kept, "!scores_read", keep),
    "asked_of_columns": Spelling(asked_of_columns, "!scores_read", keep_of_squares, square),
    "asked_before_the_mask": Spelling(asked_before_the_mask, "!scores_read", keep),
    "asked_for_a_number": Spelling(asked_for_a_number, "!scores_read", keep),
    "asked_and_filled_with_ones": Spelling(asked_and_filled_with_ones, "!weights_changed", keep),
    "asked_and_made_of_ones": Spelling(asked_and_made_of_ones, "!weights_changed", keep),
    "asked_and_told": Spelling(asked_and_told, "!scores_read", keep),
    "nan_after_a_function": Spelling(nan_after_a_function, "!weights_changed"),
    "nan_before_a_function": Spelling(nan_before_a_function, "!weights_changed", keep),
    "nan_to_one": Spelling(nan_to_one, "!weights_changed", keep),
    "masked_otherwise": Spelling(masked_otherwise, "!weights_changed", keep),
    "masked_the_other_way": Spelling(masked_the_other_way, "!weights_changed", keep),
    "masked_alone": Spelling(masked_alone, "!weights_changed", keep),
    "masked_after_a_change": Spelling(masked_after_a_change, "!weights_changed", keep),
    "masked_beside_another_mask": Spelling(
        masked_beside_another_mask, "!weights_changed", pair(keep, bias)
    ),
    "masked_beside_a_constant": Spelling(masked_beside_a_constant, "!weights_changed", keep),
    "masked_before_rows_and_heads_change_places": Spelling(
        masked_before_rows_and_heads_change_places, "!weights_changed", keep
    ),
    "masked_before_they_are_turned": Spelling(
        masked_before_they_are_turned, "!weights_changed", keep_of_squares, square
    ),
    "masked_while_they_are_turned": Spelling(
        masked_while_they_are_turned, "!weights_changed", keep_of_squares, square
    ),
    "masked_of_a_cut_number": Spelling(masked_of_a_cut_number, "!weights_changed", bias),
    "masked_weakly": Spelling(masked_weakly, "!weights_changed", keep),
    "masked_to_one": Spelling(masked_to_one, "!weights_changed", keep),
    "renormalized": Spelling(renormalized, "!weights_read", keep),
    "nan_filled_by_another": Spelling(nan_filled_by_another, "!weights_read", keep),
}
