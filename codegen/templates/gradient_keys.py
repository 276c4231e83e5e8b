"""Gradients of keys and values: a CTA for each block of keys of each head of them, which walks over
the rows of all query heads that share it, in their order. So sums are the same whoever runs first.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.gradient_tiles import gradient_tile, load_rows
from overlapc.codegen.templates.head_tiles import load_tile, of_head, store_tile
from overlapc.codegen.templates.hidden import WORD, flags_of, kept_bits, lowest_of
from overlapc.codegen.templates.launch_order import dealt
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
def visit_block(
    k_total: tl.tensor, v_total: tl.tensor, start: tl.tensor, keys: tl.tensor, values: tl.tensor,
    q: tl.tensor, slopes: tl.tensor, bases: tl.tensor, delta: tl.tensor,
    shares: tl.tensor, q_strides: tl.tuple, slopes_strides: tl.tuple, place: tl.tuple,
    rows: tl.tensor, length: tl.tensor, until: tl.tensor, inputs: tl.tuple,
    IS_CUT: tl.constexpr, SCORES: tl.constexpr, DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Add to both totals what the block of rows from ``start`` on of one query head does.

    ``place`` is (batch, query head, keys, which of them are inside). IS_CUT: not every row sees
    every key.
    """
    row = start + tl.arange(0, BLOCK_M)
    inside = row < rows
    queries = load_tile(q, start, q_strides, inside, BLOCK_M, HEAD_DIM, BLOCK_D, IS_CUT)
    slope = load_tile(slopes, start, slopes_strides, inside, BLOCK_M, VALUE_DIM, BLOCK_V, IS_CUT)
    base, row_delta, share = load_rows(bases, delta, shares, row, inside)
    own = own_key(row, rows, until, ALIGN)
    first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
    tile = (place[0], place[1], row, inside, place[2], place[3])
    weights, gradient = gradient_tile(
        queries, keys, values, slope, base, row_delta, share, tile, first, end, inputs, SCORES,
        DERIVATIVE, SCALE, BEFORE, AFTER, shares is not None, IS_CUT, PRECISION,
    )  # fmt: skip
    weights, gradient = weights.to(slope.dtype), gradient.to(queries.dtype)
    v_total = tl.dot(tl.trans(weights), slope, v_total, input_precision=PRECISION)
    k_total = tl.dot(tl.trans(gradient), queries, k_total, input_precision=PRECISION)
    return k_total, v_total


@triton.jit
def visit_rows(
    k_total: tl.tensor, v_total: tl.tensor, begin: tl.tensor, stop: tl.tensor, keys: tl.tensor,
    values: tl.tensor,
    q: tl.tensor, slopes: tl.tensor, bases: tl.tensor, delta: tl.tensor,
    shares: tl.tensor, q_strides: tl.tuple, slopes_strides: tl.tuple, place: tl.tuple,
    rows: tl.tensor, length: tl.tensor, until: tl.tensor, inputs: tl.tuple,
    IS_CUT: tl.constexpr, STAGES: tl.constexpr, SCORES: tl.constexpr, DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Add to both totals what the rows from ``begin`` to ``stop`` of one query head do."""
    for start in tl.range(begin, stop, BLOCK_M, num_stages=STAGES, disable_licm=STAGES == 1):
        k_total, v_total = visit_block(
            k_total, v_total, start, keys, values, q, slopes, bases, delta, shares, q_strides,
            slopes_strides, place, rows, length, until, inputs, IS_CUT, SCORES, DERIVATIVE, SCALE,
            BEFORE, AFTER, ALIGN, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_M, BLOCK_D, BLOCK_V,
        )  # fmt: skip
    return k_total, v_total


@triton.jit
def visit_kept_rows(
    k_total: tl.tensor, v_total: tl.tensor, begin: tl.tensor, stop: tl.tensor, flags: tl.tensor,
    step: tl.tensor, is_all: tl.tensor, keys: tl.tensor, values: tl.tensor,
    q: tl.tensor, slopes: tl.tensor, bases: tl.tensor, delta: tl.tensor,
    shares: tl.tensor, q_strides: tl.tuple, slopes_strides: tl.tuple, place: tl.tuple,
    rows: tl.tensor, length: tl.tensor, until: tl.tensor, inputs: tl.tuple,
    STAGES: tl.constexpr, SCORES: tl.constexpr, DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The same for blocks of rows of which ``flags``, ``step`` apart, say that they keep one of
    these keys, or where ``is_all``."""
    stop_block = tl.cdiv(stop, BLOCK_M)
    for group in tl.range(begin // BLOCK_M, stop_block, WORD):
        bits, count = kept_bits(flags, group, stop_block, step, is_all)
        for _ in tl.range(0, count, num_stages=STAGES, disable_licm=STAGES == 1):
            start = (group + lowest_of(bits)) * BLOCK_M
            bits = bits & (bits - 1)
            k_total, v_total = visit_block(
                k_total, v_total, start, keys, values, q, slopes, bases, delta, shares, q_strides,
                slopes_strides, place, rows, length, until, inputs, True, SCORES, DERIVATIVE, SCALE,
                BEFORE, AFTER, ALIGN, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_M, BLOCK_D,
                BLOCK_V,
            )  # fmt: skip
    return k_total, v_total


@triton.jit(do_not_specialize=["rows", "together"])
def attention_gradient_keys(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, slopes: tl.tensor, bases: tl.tensor, delta: tl.tensor,
    poison: tl.tensor, shares: tl.tensor, k_gradient: tl.tensor, v_gradient: tl.tensor,
    inputs: tl.tuple, lengths: tl.tuple, kept: tl.tensor, kept_heads: tl.tensor,
    heads: tl.tensor, rows: tl.tensor, keys: tl.tensor, together: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, slopes_strides: tl.tuple,
    k_gradient_strides: tl.tuple, v_gradient_strides: tl.tuple,
    SCORES: tl.constexpr, DERIVATIVE: tl.constexpr, SCALE: tl.constexpr, GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
    ONE_LOOP: tl.constexpr,
) -> None:  # fmt: skip
    """Write ``k_gradient`` and ``v_gradient``, every element; see ``AttentionSpec``.

    One program for each block of keys of each head of keys of each batch, dealt out ``together``
    (see ``launch_order``); ``heads`` are of queries. ``bases``, ``delta``, ``poison`` and
    ``shares`` are those of ``attention_gradient_rows``, and ``kept``, ``kept_heads`` and ONE_LOOP
    as of ``attention_gradient_queries``.
    """
    blocks = tl.cdiv(keys, BLOCK_N)
    turn, unit = dealt(tl.program_id(0), blocks, tl.num_programs(0) // blocks, together)
    # The first keys of a causal attention are seen by most rows: they begin first.
    corner = turn * BLOCK_N
    heads_of_keys = heads // GROUPS
    head_of_keys, batch = unit % heads_of_keys, unit // heads_of_keys
    length, until = length_of(lengths, batch, keys), end_of(lengths, batch, keys)
    column = corner + tl.arange(0, BLOCK_N)
    inside = column < length
    k = of_head(k, k_strides, batch, head_of_keys)
    v = of_head(v, v_strides, batch, head_of_keys)
    own_keys = load_tile(k, corner, k_strides, inside, BLOCK_N, HEAD_DIM, BLOCK_D, True)
    values = load_tile(v, corner, v_strides, inside, BLOCK_N, VALUE_DIM, BLOCK_V, True)

    # Blocks of rows from ``begin`` to ``stop`` see some of these keys, those from ``whole_begin``
    # to ``whole_stop`` all of them.
    shift = own_key(corner * 0, rows, until, ALIGN)
    last = tl.minimum(corner + BLOCK_N, length) - 1
    begin = first_row_seeing(corner, shift, AFTER) // BLOCK_M * BLOCK_M
    stop = tl.where(corner < length, end_row_seeing(last, shift, rows, BEFORE), 0)
    whole_begin = tl.cdiv(first_row_seeing(corner + BLOCK_N - 1, shift, AFTER), BLOCK_M) * BLOCK_M
    whole_stop = end_row_seeing(corner, shift, rows, BEFORE) // BLOCK_M * BLOCK_M
    whole_stop = tl.where(corner + BLOCK_N <= length, whole_stop, 0)

    k_total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    v_total = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for member in tl.range(0, GROUPS):
        head = head_of_keys * GROUPS + member
        heads_rows = (batch.to(tl.int64) * heads + head) * rows
        own_q = of_head(q, q_strides, batch, head)
        own_slopes = of_head(slopes, slopes_strides, batch, head)
        own_shares = shares
        if shares is not None:
            own_shares = shares + heads_rows
        own_poison = tl.load(poison + batch * heads + head)
        v_total += own_poison
        place = (batch, head, column, inside)
        if kept is not None:
            flags = flags_of(kept, kept_heads, batch, head, rows, keys, BLOCK_M, BLOCK_N)
            k_total, v_total = visit_kept_rows(
                k_total, v_total, begin, stop, flags + corner // BLOCK_N, blocks,
                own_poison != own_poison, own_keys, values, own_q, own_slopes, bases + heads_rows,
                delta + heads_rows, own_shares, q_strides, slopes_strides, place, rows, length,
                until, inputs, STAGES, SCORES, DERIVATIVE, SCALE, BEFORE, AFTER, ALIGN,
                HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_M, BLOCK_D, BLOCK_V,
            )  # fmt: skip
        else:
            cut_begin = begin
            if not ONE_LOOP:
                if AFTER is not None:
                    k_total, v_total = visit_rows(
                        k_total, v_total, begin, tl.minimum(whole_begin, stop), own_keys, values,
                        own_q, own_slopes, bases + heads_rows, delta + heads_rows, own_shares,
                        q_strides, slopes_strides, place, rows, length, until, inputs, True, STAGES,
                        SCORES, DERIVATIVE, SCALE, BEFORE, AFTER, ALIGN, HEAD_DIM, VALUE_DIM,
                        PRECISION, BLOCK_M, BLOCK_D, BLOCK_V,
                    )  # fmt: skip
                k_total, v_total = visit_rows(
                    k_total, v_total, whole_begin, whole_stop, own_keys, values, own_q, own_slopes,
                    bases + heads_rows, delta + heads_rows, own_shares, q_strides, slopes_strides,
                    place, rows, length, until, inputs, False, STAGES, SCORES, DERIVATIVE, SCALE,
                    BEFORE, AFTER, ALIGN, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_M, BLOCK_D, BLOCK_V,
                )  # fmt: skip
                cut_begin = tl.maximum(whole_begin, whole_stop)
            k_total, v_total = visit_rows(
                k_total, v_total, cut_begin, stop, own_keys, values, own_q, own_slopes,
                bases + heads_rows, delta + heads_rows, own_shares, q_strides, slopes_strides,
                place, rows, length, until, inputs, True, STAGES, SCORES, DERIVATIVE, SCALE, BEFORE,
                AFTER, ALIGN, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_M, BLOCK_D, BLOCK_V,
            )  # fmt: skip

    all_inside = column < keys
    k_gradient = of_head(k_gradient, k_gradient_strides, batch, head_of_keys)
    v_gradient = of_head(v_gradient, v_gradient_strides, batch, head_of_keys)
    store_tile(k_gradient, corner, k_gradient_strides, all_inside, k_total * SCALE, BLOCK_N,
               HEAD_DIM, BLOCK_D)  # fmt: skip
    store_tile(v_gradient, corner, v_gradient_strides, all_inside, v_total, BLOCK_N, VALUE_DIM,
               BLOCK_V)  # fmt: skip
