"""Spellings of the mask of an attention."""

from __future__ import annotations

import torch

from tests.attention.sizes import INF, MIN, B, D, H, K, Q


def added(q, k, v, m):
    return (m + 0.3 * (q @ k.mT)).softmax(-1) @ v


def upcast_then_added(q, k, v, m):
    return ((q @ k.mT).to(m.dtype) + m).softmax(-1).to(v.dtype) @ v


def added_then_scaled(q, k, v, m):
    return (0.5 * (2 * m - (q @ k.mT))).softmax(-1) @ v


def filled(q, k, v, kept):
    return (q @ k.mT).masked_fill(~kept, -INF).softmax(-1) @ v


def filled_finite(q, k, v, kept):
    return (q @ k.mT).masked_fill(kept == 0, -1e9).softmax(-1) @ v


def filled_and_added(q, k, v, kept, m):
    return ((q @ k.mT + m).masked_fill(~kept, -INF) * 0.5 + m).softmax(-1) @ v


def filled_then_padded(q, k, v, kept, m):
    """As GPT-2 does; of a row of both, keys that one of them hides are all there is."""
    return ((q @ k.mT).masked_fill(~kept, MIN) + m).softmax(-1) @ v


def filled_higher_then_padded(q, k, v, kept, m):
    """What both hide is no minus infinity."""
    return ((q @ k.mT).masked_fill(~kept, -1e30) + m).softmax(-1) @ v


def chosen(q, k, v, kept):
    return torch.where(kept, q @ k.mT, torch.tensor(MIN)).softmax(-1) @ v


def chosen_by_method(q, k, v, kept):
    return (q @ k.mT).where(kept, -INF).softmax(-1) @ v


def additive(q, k, v, kept):
    return (q @ k.mT + torch.where(kept, 0.0, MIN)).softmax(-1) @ v


def infinite(q, k, v, kept):
    m = torch.zeros_like(kept, dtype=q.dtype).masked_fill(~kept, -INF)
    return (q @ k.mT + m).softmax(-1) @ v


def raised(q, k, v, m):
    """As XGLM does: no score is less than the mask."""
    return torch.max(q @ k.mT + m, torch.full((), MIN)).softmax(-1) @ v


def filled_then_raised(q, k, v, kept):
    return (q @ k.mT).masked_fill(~kept, -INF).clamp(min=MIN).softmax(-1) @ v


def raised_causal(q, k, v):
    rows, keys = torch.arange(K)[:, None], torch.arange(K)[None]
    return raised(q, k, v, torch.where(keys <= rows, 0.0, MIN)[None, None])


def raised_of_two(q, k, v, m):
    """Each raised alone, they add up to minus infinity."""
    return torch.max(q @ k.mT + m + m.flip(-1), torch.full((), MIN)).softmax(-1) @ v


def causal(q, k, v):
    n = q.shape[-2]
    later = torch.triu(torch.ones(n, n, dtype=torch.bool), diagonal=1)
    return (q @ k.mT).masked_fill(later, -INF).softmax(-1) @ v


def causal_by_indices(q, k, v):
    rows, keys = torch.arange(K)[:, None], torch.arange(K)[None]
    return (q @ k.mT + torch.where(keys <= rows, 0.0, MIN)[None, None]).softmax(-1) @ v


def keys_first(q, k, v, m):
    return (k @ q.mT + m.mT).softmax(-2).mT @ v


def keys_first_mask(q, k, v, m):
    return (k @ q.mT + m.reshape(B, 1, K, Q)).softmax(-2).mT @ v


def keys_first_causal(q, k, v):
    earlier = torch.triu(torch.ones(K, K, dtype=torch.bool))
    return (k @ q.mT).where(earlier, -INF).softmax(-2).mT @ v


def window(q, k, v):
    rows, keys = torch.arange(K)[:, None], torch.arange(K)
    kept = (keys <= rows) & (keys > rows - 3)
    return (q @ k.mT).masked_fill(~kept, -INF).softmax(-1) @ v


def causal_off_by_one(q, k, v):
    later = torch.ones(K, K, dtype=torch.bool).triu(2)
    return (q @ k.mT).masked_fill(later, -INF).softmax(-1) @ v


def written_mask(q, k, v):
    """Zeros, before they are filled."""
    m = torch.zeros(K, K)
    m.masked_fill_(torch.ones(K, K, dtype=torch.bool).triu(1), -INF)
    return (q @ k.mT + m).softmax(-1) @ v


def written_causal(q, k, v):
    """Causal, before the first key is kept for all and the first row keeps all."""
    kept = torch.ones(K, K, dtype=torch.bool).tril()
    kept[0] = True
    return torch.where(kept, q @ k.mT, -INF).softmax(-1) @ v


def nothing_masked(q, k, v):
    return (q @ k.mT + torch.zeros(1, 1, Q, K)).softmax(-1) @ v


def item_filled(q, k, v):
    s = q @ k.mT
    s[:, :, torch.ones(Q, K, dtype=torch.bool).triu(1)] = -INF
    return (s * 0.5).softmax(-1) @ v


def items_filled(q, k, v, kept):
    s = q @ k.mT
    s[~kept.expand(B, H, Q, K)] = -INF
    return s.softmax(-1) @ v


def rows_filled(q, k, v, kept):
    """A mask of rows in full: it has fewer dimensions than scores."""
    s = q @ k.mT
    s[:, :, ~kept[0, 0, :, 0]] = MIN
    return s.softmax(-1) @ v


def slices_filled(q, k, v):
    """The last keys, some of a row of one head, and of one sequence but the last row."""
    s = q @ k.mT
    s[..., K - 5 :] = -INF
    s[:, 1, 2, :3] = MIN
    s[0, :, :-1, 4:6] = -INF
    return (s * 0.5).softmax(-1) @ v


def slices_filled_keys_first(q, k, v):
    s = k @ q.mT
    s[..., K - 5 :, :] = -INF
    return s.softmax(-2).mT @ v


def triangle_filled_by_slices(q, k, v):
    """Causal, row by row."""
    s = q @ k.mT
    for row in range(K - 1):
        s[..., row, row + 1 :] = -INF
    return s.softmax(-1) @ v


def expanded_as_scores(q, k, v, kept):
    s = q @ k.mT
    s[~kept.expand_as(s)] = -INF
    return s.softmax(-1) @ v


def made_like_scores(q, k, v):
    """Causal, by what has a shape of scores and nothing else of them."""
    s = q @ k.mT
    later = torch.ones_like(s, dtype=torch.bool).triu(1)
    return (s + torch.zeros(K, K).type_as(s)).masked_fill(later, -INF).softmax(-1) @ v


def added_like_scores(q, k, v, kept):
    s = q @ k.mT
    return (torch.zeros_like(s).masked_fill(~kept, -INF) + s).softmax(-1) @ v


def written_to_after_a_choice(q, k, v, kept):
    """Of finite numbers, of which some become infinite: the row that keeps none is NaN."""
    mask = torch.where(kept, 0.0, -1e9)
    mask.masked_fill_(~kept.any(-1, keepdim=True), -INF)
    return (q @ k.mT + mask).softmax(-1) @ v


def filled_through_a_view(q, k, v, kept):
    s = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    s.view(B, H, Q, K).masked_fill_(~kept, -INF)
    return ((0.5 * s).softmax(-1) @ v.flatten(0, 1)).view(B, H, Q, D)
