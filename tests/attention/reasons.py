"""Attention that is to be left as it is, by what its reason says: a line each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.attention.catalogue import Spelling, keep, square
from tests.attention.sizes import INF, B, D, H, K, Q


def weights_added(q, k, v):
    """As the residual of a product that they are no factor of."""
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    return torch.baddbmm((q @ k.mT).softmax(-1), q, v.mT)


def weights_squared(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return w @ w


def weights_squared_by_letters(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return torch.einsum("bhij,bhjk->bhik", w, w)


def weights_added_to_a_product_of_matrices(q, k, v):
    q, k, v = (side[0, 0] for side in (q, k, v))
    return torch.addmm((q @ k.mT).softmax(-1), q, v.mT)


def of_more_sequences(q, k, v, m):
    return (q[:1] @ k[:1].mT + m).softmax(-1) @ v[:1]


def filled_for_more_sequences(q, k, v, kept):
    return (q[:1] @ k[:1].mT).masked_fill(~kept, -INF).softmax(-1) @ v[:1]


def of_more_sequences_than_heads(q, k, v, m):
    return (q[0] @ k[0].mT + m).softmax(-1) @ v[0]


def of_as_many_sequences(q, k, v, m):
    return (q[:1].expand(B, -1, -1, -1) @ k[:1].mT + m).softmax(-1) @ v[:1]


def scaled_by_infinity(q, k, v):
    return (q @ k.mT * INF).softmax(-1) @ v


def scaled_by_nan(q, k, v):
    return (q @ k.mT * float("nan")).softmax(-1) @ v


def weights_summed(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return w @ v, w.sum()


def weights_read_by_many(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return F.dropout(w, 0.0, False) @ v, w.sum(), w.amax(), w.argmax(), w.std()


def weights_of_two(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return w @ v, w @ v.exp()


def scores_summed(q, k, v):
    s = q @ k.mT
    return s.softmax(-1) @ v, s.sum()


def scores_told(q, k, v):
    s = q @ k.mT
    return s.softmax(-1) @ v, s


def rows_in_two_dimensions(q, k, v):
    """Over a part of the rows."""
    s = (k @ q.mT).view(B, H, K, 2, Q // 2)
    return s.softmax(-2).view(B, H, K, Q).mT @ v


def keys_of_all_heads(q, k, v):
    return (k @ q.mT).reshape(-1, Q).softmax(-2).view(B, H, K, Q).mT @ v


def rows_of_a_product_in_two_dimensions(q, k, v):
    s = q.view(B, H, 2, Q // 2, D) @ k[:, :, None].mT
    return s.view(B, H, Q, K).softmax(-1) @ v


def few_keys(q, k, v):
    return (q @ k[:, :, :8].mT).softmax(-1) @ v[:, :, :8]


def few_keys_of_torch(q, k, v):
    return F.scaled_dot_product_attention(q, k[:, :, :8], v[:, :, :8])


def best_keys(q, k, v):
    s = q @ k.mT
    least = s.topk(12, -1).values[..., -1:]
    return s.masked_fill(s < least, -INF).softmax(-1) @ v


def normed_by_groups(q, k, v):
    """Torch's own error, of the few heads that stand for all, says nothing to a reader."""
    return F.group_norm(q @ k.mT, H).softmax(-1) @ v


def filled_in_half(q, k, v, kept):
    return half((q, k, v), lambda s: s.masked_fill(~kept, torch.finfo(s.dtype).min))


def added_in_half(q, k, v, kept):
    least = torch.finfo(torch.float16).min
    return half((q, k, v), lambda s: s + torch.where(kept, 0.0, least).to(s.dtype))


def half(sides, mask, dtype=torch.float16):
    q, k, v = (side.to(dtype) for side in sides)
    return mask(q @ k.mT).softmax(-1) @ v


def filled_with_infinity(q, k, v, kept):
    return half((q, k, v), lambda s: s.masked_fill(~kept, -INF))


def filled_in_bfloat16(q, k, v, kept):
    least = torch.finfo(torch.bfloat16).min
    return half((q, k, v), lambda s: s.masked_fill(~kept, least), torch.bfloat16)


def added_in_bfloat16(q, k, v, kept):
    least = torch.finfo(torch.bfloat16).min
    mask = torch.where(kept, 0.0, least).bfloat16()
    return half((q, k, v), lambda s: s + mask, torch.bfloat16)


def mask_of_each():
    return (torch.randn(B, 1, Q, K),)


SAID = {
    "weights_added": Spelling(
        weights_added, "!product", operands=square, says="At baddbmm, weights are added"
    ),
    "weights_squared": Spelling(
        weights_squared, "!product", operands=square, says="At matmul, weights are both factors"
    ),
    "weights_squared_by_letters": Spelling(
        weights_squared_by_letters, "!product", operands=square,
        says="At einsum, weights are both factors of the product, and nothing else is weighed",
    ),
    "weights_added_to_a_product_of_matrices": Spelling(
        weights_added_to_a_product_of_matrices, "!product", operands=square,
        says="At addmm, weights are added to the product, and no factor of it",
    ),
    "of_more_sequences": Spelling(
        of_more_sequences, "!product", mask_of_each,
        says=f"At add, the mask m of {[B, 1, Q, K]} has more batches than scores of {[1, H, Q, K]}",
    ),
    "filled_for_more_sequences": Spelling(
        filled_for_more_sequences, "!product", lambda: (mask_of_each()[0] > 0,),
        says="At masked_fill, the mask invert (reasons.py:",
    ),
    "of_more_sequences_than_heads": Spelling(
        of_more_sequences_than_heads, "!product", mask_of_each, says="the mask m of"
    ),
    "scaled_by_infinity": Spelling(scaled_by_infinity, "!scale", says="multiplied by inf"),
    "scaled_by_nan": Spelling(scaled_by_nan, "!scale", says="multiplied by nan"),
    "weights_summed": Spelling(weights_summed, "!weights_read", says="are read by sum (reasons.py"),
    "weights_read_by_many": Spelling(
        weights_read_by_many, "!weights_read", says="and 2 other calls"
    ),
    "weights_of_two": Spelling(weights_of_two, "!weights_read", says="are read by matmul (reasons"),
    "scores_summed": Spelling(scores_summed, "!scores_read", says="are read by sum (reasons.py:"),
    "scores_told": Spelling(scores_told, "!scores_read", says="are read by the caller"),
    "rows_in_two_dimensions": Spelling(
        rows_in_two_dimensions, "!score_function",
        says=f"view regroups scores of {[B, H, K, Q]} as {[B, H, K, 2, Q // 2]}",
    ),
    "keys_of_all_heads": Spelling(
        keys_of_all_heads, "!score_function",
        says=f"reshape regroups scores of {[B, H, K, Q]} as {[B * H * K, Q]}",
    ),
    "rows_of_a_product_in_two_dimensions": Spelling(
        rows_of_a_product_in_two_dimensions, "!score_function",
        says="and their product has rows or keys in several dimensions",
    ),
    "best_keys": Spelling(
        best_keys, "!score_function",
        says="and no kernel can: topk compares keys of a row with each other.",
    ),
    "normed_by_groups": Spelling(
        normed_by_groups, "!score_function",
        says="and no kernel can: group_norm is not computed of one score at a time.",
    ),
    "filled_in_half": Spelling(
        filled_in_half, "!weak_fill", keep,
        says="minus infinity is none, and in bfloat16 its least number is none.",
    ),
    "added_in_half": Spelling(
        added_in_half, "!half_mask", keep,
        says="taken in bfloat16, or where a condition fills scores with minus infinity.",
    ),
    "few_keys": Spelling(
        few_keys, "!few_keys",
        says="Torch's attention over fewer than 16 keys may lose a NaN of its queries on "
        "processors: where a model calls it by itself, as F.scaled_dot_product_attention, it "
        "stays.",
    ),
}  # fmt: skip
ADVISED = {
    "of_as_many_sequences": Spelling(of_as_many_sequences, more=mask_of_each),
    "filled_with_infinity": Spelling(filled_with_infinity, more=keep),
    "filled_in_bfloat16": Spelling(filled_in_bfloat16, more=keep),
    "added_in_bfloat16": Spelling(added_in_bfloat16, more=keep),
    "few_keys_of_torch": Spelling(few_keys_of_torch, "=fused_already"),
}
"""What reasons of ``SAID`` advise."""


def masked(q, k, v, m):
    return (q @ k.mT + m).softmax(-1) @ v


def masked_by_inputs(q, k, v, m):
    later = m[:, :1] > m[:1]
    return (q @ k.mT).masked_fill(later, -INF).softmax(-1) @ v


def windowed(q, k, v, m):
    n = q.shape[-2]
    near = (torch.arange(n)[:, None] - torch.arange(n)).abs() < 9
    return (q @ k.mT).masked_fill(~near, -INF).softmax(-1) @ v


MASKS = {
    masked: "With a mask that is given,",
    masked_by_inputs: "With a mask that is made in the graph,",
    windowed: "With a constant mask that is not causal,",
}
