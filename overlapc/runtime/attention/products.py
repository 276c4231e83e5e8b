"""An attention on processors by two products of the library for some rows at a time.

Scores of few rows stay in the cache between the two products, and keys before the first and behind
the last that any of these rows sees are not multiplied. A head of keys is multiplied once, with the
rows of all queries that share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from overlapc.planning.attention.by_rows import ROWS_AT_A_TIME


def attention_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    spans: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """Return the result, rows before heads in memory, of float32 or bfloat16 operands.

    ``mask`` is of booleans that keep or of numbers that are added, [1 or batch, 1 or heads, rows,
    keys]; None: row r sees keys up to the r-th. ``spans`` says of each ``ROWS_AT_A_TIME`` rows from
    which key on and before which one all are that they see. A row that sees no key is NaN.
    """
    batch, heads, rows, _ = query.shape
    out = query.new_empty((batch, rows, heads, value.shape[-1]))
    space = query.new_empty(
        heads * min(ROWS_AT_A_TIME, rows) * max(end - begin for begin, end in spans)
    )
    for entry in range(batch):
        sides = query[entry].unflatten(0, (key.shape[1], -1)), key[entry].mT, value[entry]
        own = None if mask is None else mask[entry % len(mask)]
        for start, keys in zip(range(0, rows, ROWS_AT_A_TIME), spans, strict=True):
            stop = min(start + ROWS_AT_A_TIME, rows)
            found = _of_rows(*sides, scale, own, slice(start, stop), slice(*keys), space)
            out[entry, start:stop] = found.transpose(0, 1)
    return out.transpose(1, 2)


def _of_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    rows: slice,
    keys: slice,
    space: torch.Tensor,
) -> torch.Tensor:
    """The result of some rows, ``[heads, rows, value_dim]``, over some keys: of queries by the head
    of keys they share, and keys as columns."""
    some = query[:, :, rows].flatten(1, 2)
    shape = (len(some), some.shape[1], keys.stop - keys.start)
    weights = space[: math.prod(shape)].view(shape)
    torch.baddbmm(weights, some, key[..., keys], beta=0.0, alpha=scale, out=weights)
    _hide(weights.view(-1, rows.stop - rows.start, shape[-1]), mask, rows, keys)
    torch.softmax(weights, -1, out=weights)
    return torch.bmm(weights, value[:, keys]).view(-1, rows.stop - rows.start, value.shape[-1])


def _hide(scores: torch.Tensor, mask: torch.Tensor | None, rows: slice, keys: slice) -> None:
    """Take from scores ``[heads, rows, keys]`` what a mask hides of some rows and keys."""
    if mask is None:
        beside = scores[..., rows.start :]
        later = beside.new_ones(beside.shape[1:], dtype=torch.bool).triu_(1)
        beside.masked_fill_(later, -math.inf)
    elif mask.dtype == torch.bool:
        scores.masked_fill_(~mask[:, rows, keys], -math.inf)
    else:
        scores.add_(mask[:, rows, keys])
