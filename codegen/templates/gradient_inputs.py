"""The gradient of one tensor that scores are made of beside queries and keys.

Every element, or partial sum, is made by one program, which walks over all that it is a sum of in
one order. What is summed is a whole tile, and only in the end over its rows or keys.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.gradient_tiles import gradient_tile, load_rows
from overlapc.codegen.templates.head_tiles import load_tile, of_head
from overlapc.codegen.templates.hidden import flags_of
from overlapc.codegen.templates.visible import (
    end_of,
    end_row_seeing,
    end_seen,
    first_row_seeing,
    first_seen,
    length_of,
    own_key,
)


@triton.jit
def tile_of_pair(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, slopes: tl.tensor, bases: tl.tensor, delta: tl.tensor,
    shares: tl.tensor, inputs: tl.tuple, lengths: tl.tuple, batch: tl.tensor, head: tl.tensor,
    corner: tl.tensor, start: tl.tensor, heads: tl.tensor, rows: tl.tensor, keys: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, slopes_strides: tl.tuple,
    SCORES: tl.constexpr, DERIVATIVE: tl.constexpr, SCALE: tl.constexpr, GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What each score of the rows from ``corner`` and the keys from ``start`` of a head adds."""
    row, column = corner + tl.arange(0, BLOCK_M), start + tl.arange(0, BLOCK_N)
    length, until = length_of(lengths, batch, keys), end_of(lengths, batch, keys)
    row_inside, inside = row < rows, column < length
    queries = load_tile(of_head(q, q_strides, batch, head), corner, q_strides, row_inside, BLOCK_M,
                        HEAD_DIM, BLOCK_D, True)  # fmt: skip
    slope = load_tile(of_head(slopes, slopes_strides, batch, head), corner, slopes_strides,
                      row_inside, BLOCK_M, VALUE_DIM, BLOCK_V, True)  # fmt: skip
    own_keys = load_tile(of_head(k, k_strides, batch, head // GROUPS), start, k_strides, inside,
                         BLOCK_N, HEAD_DIM, BLOCK_D, True)  # fmt: skip
    values = load_tile(of_head(v, v_strides, batch, head // GROUPS), start, v_strides, inside,
                       BLOCK_N, VALUE_DIM, BLOCK_V, True)  # fmt: skip
    heads_rows = (batch.to(tl.int64) * heads + head) * rows
    own_shares = shares
    if shares is not None:
        own_shares = shares + heads_rows
    base, row_delta, share = load_rows(bases + heads_rows, delta + heads_rows, own_shares, row,
                                       row_inside)  # fmt: skip
    own = own_key(row, rows, until, ALIGN)
    first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
    _, gradient = gradient_tile(
        queries, own_keys, values, slope, base, row_delta, share,
        (batch, head, row, row_inside, column, inside), first, end, inputs, SCORES, DERIVATIVE,
        SCALE, BEFORE, AFTER, shares is not None, True, PRECISION,
    )  # fmt: skip
    return gradient


@triton.jit(do_not_specialize=["rows"])
def attention_gradient_inputs(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, slopes: tl.tensor, bases: tl.tensor, delta: tl.tensor,
    poison: tl.tensor, shares: tl.tensor, gradient: tl.tensor, inputs: tl.tuple,
    lengths: tl.tuple, kept: tl.tensor, kept_heads: tl.tensor,
    heads: tl.tensor, rows: tl.tensor, keys: tl.tensor, own_heads: tl.tensor,
    same_heads: tl.tensor, same_batches: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, slopes_strides: tl.tuple,
    gradient_strides: tl.tuple, SUMS: tl.constexpr,
    SCORES: tl.constexpr, DERIVATIVE: tl.constexpr, SCALE: tl.constexpr, GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> None:  # fmt: skip
    """Write ``gradient[batches, own_heads, rows, keys]``, every element; see ``AttentionSpec``.

    SUMS is ``heads``: one program for each tile, which adds up the ``same_batches`` and
    ``same_heads`` that share it. ``keys``: one for each block of rows of each head, of which each
    row is summed over keys: the last size is one. ``rows``: of keys, with one row. Others are as of
    ``attention_gradient_queries``.
    """
    row_blocks, key_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(keys, BLOCK_N)
    if SUMS == "keys":
        key_blocks = 1
    if SUMS == "rows":
        row_blocks = 1
    program = tl.program_id(0)
    corner = program % row_blocks * BLOCK_M
    start = program // row_blocks % key_blocks * BLOCK_N
    place = program // row_blocks // key_blocks
    own_head = place % own_heads
    own_batch = place // own_heads
    count = same_batches * same_heads
    if SUMS == "heads" and lengths is None:
        # No row of the tile may see a key of it, in any head.
        before_last = own_key(tl.minimum(corner + BLOCK_M, rows) - 1, rows, keys, ALIGN)
        is_seen = start < end_seen(before_last, keys, AFTER)
        is_seen = is_seen & (
            start + BLOCK_N > first_seen(own_key(corner, rows, keys, ALIGN), BEFORE)
        )
        count = tl.where(is_seen, count, 0)
    if SUMS == "keys":
        length, until = length_of(lengths, own_batch, keys), end_of(lengths, own_batch, keys)
        highest = own_key(tl.minimum(corner + BLOCK_M, rows) - 1, rows, until, ALIGN)
        start = first_seen(own_key(corner, rows, until, ALIGN), BEFORE) // BLOCK_N * BLOCK_N
        count = tl.cdiv(tl.maximum(end_seen(highest, length, AFTER) - start, 0), BLOCK_N)
    if SUMS == "rows":
        length, until = length_of(lengths, own_batch, keys), end_of(lengths, own_batch, keys)
        shift = own_key(start * 0, rows, until, ALIGN)
        last = tl.minimum(start + BLOCK_N, length) - 1
        corner = first_row_seeing(start, shift, AFTER) // BLOCK_M * BLOCK_M
        stop = tl.where(start < length, end_row_seeing(last, shift, rows, BEFORE), 0)
        count = tl.cdiv(tl.maximum(stop - corner, 0), BLOCK_M)

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.range(0, count, num_stages=1, disable_licm=True):
        batch, head, row_at, key_at = own_batch, own_head, corner, start
        if SUMS == "heads":
            batch, head = own_batch + step // same_heads, own_head + step % same_heads
        if SUMS == "keys":
            key_at = start + step * BLOCK_N
        if SUMS == "rows":
            row_at = corner + step * BLOCK_M
        is_kept = True
        if kept is not None:
            flags = flags_of(kept, kept_heads, batch, head, rows, keys, BLOCK_M, BLOCK_N)
            flags += row_at // BLOCK_M * tl.cdiv(keys, BLOCK_N)
            own_poison = tl.load(poison + batch * heads + head)
            is_kept = (tl.load(flags + key_at // BLOCK_N) > 0) | (own_poison != own_poison)
        if is_kept:
            total += tile_of_pair(
                q, k, v, slopes, bases, delta, shares, inputs, lengths, batch, head, row_at, key_at,
                heads, rows, keys, q_strides, k_strides, v_strides, slopes_strides, SCORES,
                DERIVATIVE, SCALE, GROUPS, HEAD_DIM, VALUE_DIM, BEFORE, AFTER, ALIGN,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_V,
            )  # fmt: skip

    gradient = of_head(gradient, gradient_strides, own_batch, own_head)
    row, column = corner + tl.arange(0, BLOCK_M), start + tl.arange(0, BLOCK_N)
    row_places = gradient + row.to(tl.int64) * gradient_strides[2]
    if SUMS == "keys":
        tl.store(row_places, tl.sum(total, 1), mask=row < rows)
    elif SUMS == "rows":
        key_places = gradient + column.to(tl.int64) * gradient_strides[3]
        tl.store(key_places, tl.sum(total, 0), mask=column < keys)
    else:
        places = row_places[:, None] + column.to(tl.int64)[None, :] * gradient_strides[3]
        is_inside = (row < rows)[:, None] & (column < keys)[None, :]
        tl.store(places, total.to(gradient.dtype.element_ty), mask=is_inside)
