"""Attention whose scores are regrouped between product and softmax, so that rows or keys are more
dimensions than one: as of images, which add positions of height and width."""

from __future__ import annotations

import torch

from tests.attention.catalogue import Spelling, keep, square
from tests.attention.sizes import INF, D, H

SIDE = 4


def of_an_image(*sides):
    """``[B, H, rows, dim]`` of as many rows as an image has."""
    return tuple(side[:, :, : SIDE * SIDE] for side in sides)


def apart(scores):
    """Height and width of rows, then of keys."""
    return scores.view(*scores.shape[:-2], SIDE, SIDE, SIDE, SIDE)


def together(scores):
    return scores.reshape(*scores.shape[:-4], SIDE * SIDE, SIDE * SIDE)


def positions(q, gain):
    """Of each row's product with what stands for a height, or a width, of keys."""
    learned = gain * torch.linspace(-1, 1, SIDE * SIDE * D, dtype=q.dtype).view(SIDE, SIDE, D)
    return torch.einsum("bnhwc,hkc->bnhwk", q.unflatten(2, (SIDE, SIDE)), learned)


def mvit(q, k, v):
    """In four dimensions, which become six, and scaled after positions are added."""
    q, k, v = of_an_image(q, k, v)
    s = apart(q @ k.mT) + positions(q, 1.0)[..., None] - positions(q, 0.5)[..., None, :]
    return together(0.4 * s).softmax(-1) @ v


def sam_of_transformers(q, k, v):
    """Positions are put in the order of scores, and not scores in theirs."""
    q, k, v = of_an_image(q, k, v)
    s = q @ k.mT
    beside = positions(q, 1.0)[..., None] * torch.ones(SIDE, dtype=q.dtype)
    beside += positions(q, 0.5)[..., None, :]
    return (s + beside.reshape_as(s)).softmax(-1) @ v


def masked(q, k, v, kept):
    """Columns of the image are hidden of each sequence, then rows and keys are one again twice."""
    q, k, v = of_an_image(q, k, v)
    columns = kept[:, :, 0, :SIDE].reshape(-1, 1, 1, 1, 1, SIDE) | (torch.arange(SIDE) == 1)
    s = apart(q @ k.mT).masked_fill(~columns, -INF)
    s = apart(together(s) * 0.5).to(q.dtype) + torch.linspace(0, 1, SIDE, dtype=q.dtype)
    return together(s).softmax(-1) @ v


def capped_before(q, k, v):
    """Functions of whole scores stand before."""
    q, k, v = of_an_image(q, k, v)
    s = apart(torch.tanh(q @ k.mT)) + positions(q, 1.0)[..., None]
    return together(s).softmax(-1) @ v


def heads_with_rows(q, k, v):
    """Heads, rows and keys are one dimension."""
    s = (q @ k.mT).flatten(1) + torch.linspace(-1, 1, k.shape[2] ** 2 * H, dtype=q.dtype)
    return s.unflatten(1, (H, k.shape[2], k.shape[2])).softmax(-1) @ v


def less_greatest_of_a_height(q, k, v):
    """What keys of one height share, others do not."""
    q, k, v = of_an_image(q, k, v)
    s = apart(q @ k.mT)
    return together(s - s.amax(-1, keepdim=True)).softmax(-1) @ v


def turned(q, k, v):
    """Keys are in another order than values."""
    q, k, v = of_an_image(q, k, v)
    return together(apart(q @ k.mT).transpose(-2, -1)).softmax(-1) @ v


def turned_and_back(q, k, v):
    """What is added in between is turned as well."""
    q, k, v = of_an_image(q, k, v)
    s = apart(q @ k.mT).mT + torch.linspace(0, 1, SIDE, dtype=q.dtype)
    return together(s.mT).softmax(-1) @ v


def rows_with_keys(q, k, v):
    """Rows and keys change places between the views."""
    q, k, v = of_an_image(q, k, v)
    return together(apart(q @ k.mT).permute(0, 1, 4, 5, 2, 3)).softmax(-1) @ v


def capped(q, k, v):
    q, k, v = of_an_image(q, k, v)
    return together(torch.tanh(apart(q @ k.mT))).softmax(-1) @ v


def written(q, k, v):
    q, k, v = of_an_image(q, k, v)
    s = apart(q @ k.mT)
    s[..., 2:] = -INF
    return together(s).softmax(-1) @ v


def never_one(q, k, v):
    """The product has heights and widths itself."""
    q, k, v = of_an_image(q, k, v)
    rows, keys = (side.unflatten(2, (SIDE, SIDE)) for side in (q, k))
    return together(torch.einsum("bnhwc,bnxyc->bnhwxy", rows, keys)).softmax(-1) @ v


REGROUPED = {
    "mvit": Spelling(mvit, operands=square),
    "sam_of_transformers": Spelling(sam_of_transformers, operands=square),
    "image_masked": Spelling(masked, more=keep, operands=square),
    "image_capped_before": Spelling(capped_before, "!score_function", operands=square),
    "heads_with_rows": Spelling(heads_with_rows, operands=square),
    "less_greatest_of_a_height": Spelling(
        less_greatest_of_a_height, "!scores_read", operands=square
    ),
    "keys_turned": Spelling(turned, "!score_function", operands=square),
    "keys_turned_and_back": Spelling(turned_and_back, "!score_function", operands=square),
    "rows_with_keys": Spelling(rows_with_keys, "!score_function", operands=square),
    "image_capped": Spelling(capped, "!score_function", operands=square),
    "image_written": Spelling(written, "!score_function", operands=square),
    "image_never_one": Spelling(never_one, "!score_function", operands=square),
}
"""Refused are what is no sum, and what is not in the order of rows and keys."""
