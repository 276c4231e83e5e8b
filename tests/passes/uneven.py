"""Spellings of uneven shards: padded before they are scattered, trimmed after they are gathered."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.passes.spelling import (
    BATCH,
    COLUMNS,
    INNER,
    ROWS,
    Spelling,
    all_gather,
    bias,
    reduce_scatter,
    weight,
    x2,
    x3,
)


def padded_whole(x, w):
    y = F.linear(x[:-1], w).relu()
    return reduce_scatter(F.pad(y, (0, 0, 0, 1)))


def padded_part(x, w, *bias):
    """As DTensor shards a sequence that the ranks do not divide."""
    first, last = F.linear(x[:, :-1], w, *bias).split(ROWS // 2, 1)
    y = torch.cat([first.contiguous(), F.pad(last, (0, 0, 0, 1))], 1)
    return reduce_scatter(y, 1)


def padded_batches(x, w, *bias):
    """The same along another dimension of rows."""
    first, last = F.linear(x[:-1], w, *bias).split(BATCH // 2)
    return reduce_scatter(torch.cat([first, F.pad(last, (0, 0, 0, 0, 0, 1))]), 0)


def padded_nothing(x, w, *bias):
    """The last rank has no rows of its own."""
    (y,) = F.linear(x[:1], w, *bias).split(1)
    nothing = y.new_zeros(0, *y.shape[1:])
    return reduce_scatter(torch.cat([y, F.pad(nothing, (0, 0, 0, 0, 0, 1))]), 0)


def padded_batch(x, w):
    return reduce_scatter(F.pad(F.linear(x[:-1], w), (0, 0, 0, 0, 0, 1)), 0)


def padded_middle(x, w):
    """Rows have a dimension before the one that is padded, and one behind it."""
    y = F.linear(x.view(BATCH, 8, -1, INNER)[:, :-1], w).cos()
    return reduce_scatter(F.pad(y, (0, 0) * 2 + (0, 1)), 1)


def padded_sum(x, w, v, b):
    """As two projections of one activation, each of which gathers it, are differentiated."""
    return padded_batches(x, w, b) + padded_batches(x.relu(), v)


def padded_heads(x, w, b):
    y = F.linear(x[:, :-1], w, b).unflatten(-1, (4, -1))
    return reduce_scatter(F.pad(y, (0, 0) * 2 + (0, 1)), 1)


def padded_read(x, w, b):
    y = F.linear(x[:-1], w, b)
    return reduce_scatter(F.pad(y, (0, 0, 0, 0, 0, 1)), 0), y.relu()


def padded_residual(x, w, r):
    y = F.linear(x[:, :-1], w) + r
    return reduce_scatter(F.pad(y, (0, 0, 0, 1)), 1)


def padded_infinite(x, w):
    """What follows from rows of zeros is infinite."""
    return reduce_scatter(F.pad(F.linear(x[:-1], w).abs().log(), (0, 0, 0, 1)))


def trimmed(x, w):
    return F.linear(all_gather(x, 0)[: 2 * BATCH * ROWS - 3], w)


def trimmed_batch(x, w):
    full = all_gather(x, 0)[: 2 * BATCH - 1]
    return F.linear(full, w).relu().sum(0), full


def trimmed_residual(x, w, r):
    return (all_gather(x, 1)[:, : 2 * ROWS - 3] * r) @ w.t()


def trimmed_sequence(x, w):
    return F.linear(all_gather(x, 1)[:, : 2 * ROWS - 1], w)


RS, AG = "gemm_reduce_scatter", "all_gather_gemm"
PADDED = {
    "padded_whole": Spelling(padded_whole, lambda: (x2(), weight()), (RS,)),
    "padded_part": Spelling(padded_part, lambda: (x3(), weight()), (RS,), (AG,)),
    "padded_part_of_bias": Spelling(padded_part, lambda: (x3(), weight(), bias()), (RS,), (AG,)),
    "padded_batches": Spelling(padded_batches, lambda: (x3(), weight()), (RS,), (AG,)),
    "padded_batches_of_bias": Spelling(
        padded_batches, lambda: (x3(), weight(), bias()), (RS,), (AG,)
    ),
    "padded_nothing": Spelling(padded_nothing, lambda: (x3(), weight(), bias()), (RS,), (AG,)),
    "padded_batch": Spelling(padded_batch, lambda: (x3(), weight()), (RS,), (AG,)),
    "padded_middle": Spelling(padded_middle, lambda: (x3(), weight()), (RS,), (AG,)),
    "padded_sum": Spelling(padded_sum, lambda: (x3(), weight(), weight(), bias()), (RS, RS)),
    "padded_heads": Spelling(padded_heads, lambda: (x3(), weight(), bias()), (RS,)),
    "padded_read": Spelling(padded_read, lambda: (x3(), weight(), bias()), (RS,)),
    "padded_residual": Spelling(
        padded_residual, lambda: (x3(), weight(), torch.randn(BATCH, ROWS - 1, COLUMNS)), (RS,)
    ),
    "padded_infinite": Spelling(padded_infinite, lambda: (x2(), weight()), (RS,)),
}
TRIMMED = {
    "trimmed": Spelling(trimmed, lambda: (x2(), weight()), (AG,)),
    "trimmed_sequence": Spelling(trimmed_sequence, lambda: (x3(), weight()), (AG,)),
    "trimmed_batch": Spelling(trimmed_batch, lambda: (x3(), weight()), (AG,)),
    "trimmed_residual": Spelling(
        trimmed_residual,
        lambda: (x3(), weight(), torch.randn(BATCH, 2 * ROWS - 3, INNER)),
        (AG,),
    ),
}
