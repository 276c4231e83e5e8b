"""What masks tell of keys that are not read: scores at a product of zero.

For scores of ``visibility.masks_tell``: what a row does not see is minus infinity there, whatever
the product is. ``place`` is batch, head, row and whether the row is inside.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.softmax import score_tile


@triton.jit
def scores_of_nothing(
    start: tl.tensor, place: tl.tuple, first: tl.tensor, end: tl.tensor, length: tl.tensor,
    inputs: tl.tuple, SCORES: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores of the keys from ``start`` on at a product of zero, ``[BLOCK_M, BLOCK_N]``; minus
    infinity where a row does not see a key by its place."""
    column = start + tl.arange(0, BLOCK_N)
    tile = (place[0], place[1], place[2], place[3], column, column < length)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    return score_tile(product, tile, first, end, inputs, SCORES, 1.0, BEFORE, AFTER, True)


@triton.jit
def any_keeps_key(
    rows: tl.tensor, start: tl.tensor, place: tl.tuple, first: tl.tensor, end: tl.tensor,
    length: tl.tensor, inputs: tl.tuple, floor: tl.tensor, SCORES: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Whether masks leave some of ``rows`` a key of the tile from ``start`` on; with a ``floor`` of
    each row (see ``hidden``), one above it."""
    score = scores_of_nothing(
        start, place, first, end, length, inputs, SCORES, BEFORE, AFTER, BLOCK_M, BLOCK_N
    )
    kept = score != float("-inf") if floor is None else (score <= floor[:, None]) == 0
    keeps = tl.max(kept.to(tl.int32), 1) > 0
    return tl.sum((rows & keeps).to(tl.int32), 0) > 0


@triton.jit
def keeping_none(
    rows: tl.tensor, begin: tl.tensor, stop: tl.tensor, place: tl.tuple, first: tl.tensor,
    end: tl.tensor, length: tl.tensor, inputs: tl.tuple, SCORES: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Those of ``rows`` that masks leave none of the keys from ``begin`` to ``stop``."""
    start = begin
    while (start < stop) & (tl.sum(rows.to(tl.int32), 0) > 0):
        score = scores_of_nothing(
            start, place, first, end, length, inputs, SCORES, BEFORE, AFTER, BLOCK_M, BLOCK_N
        )
        rows = rows & (tl.max((score != float("-inf")).to(tl.int32), 1) == 0)
        start += BLOCK_N
    return rows
