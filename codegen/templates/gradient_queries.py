"""Gradients of queries: a CTA for each block of rows of each head, which walks over the keys."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.gradient_tiles import gradient_tile, load_rows
from overlapc.codegen.templates.head_tiles import load_tile, of_head, store_tile
from overlapc.codegen.templates.hidden import WORD, flags_of, kept_bits, lowest_of
from overlapc.codegen.templates.launch_order import dealt
from overlapc.codegen.templates.visible import end_of, end_seen, first_seen, length_of, own_key


@triton.jit
def visit_tile(
    total: tl.tensor, start: tl.tensor, queries: tl.tensor, slope: tl.tensor,
    row_facts: tl.tuple, k: tl.tensor, v: tl.tensor, k_strides: tl.tuple, v_strides: tl.tuple,
    place: tl.tuple, first: tl.tensor, end: tl.tensor, length: tl.tensor, inputs: tl.tuple,
    IS_CUT: tl.constexpr, SCORES: tl.constexpr, DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add what the keys from ``start`` on do to the gradient of the rows at ``place``."""
    column = start + tl.arange(0, BLOCK_N)
    inside = column < length
    keys = load_tile(k, start, k_strides, inside, BLOCK_N, HEAD_DIM, BLOCK_D, IS_CUT)
    values = load_tile(v, start, v_strides, inside, BLOCK_N, VALUE_DIM, BLOCK_V, IS_CUT)
    tile = (place[0], place[1], place[2], place[3], column, inside)
    _, gradient = gradient_tile(
        queries, keys, values, slope, row_facts[0], row_facts[1], row_facts[2], tile, first,
        end, inputs, SCORES, DERIVATIVE, SCALE, BEFORE, AFTER, False, IS_CUT, PRECISION,
    )  # fmt: skip
    return tl.dot(gradient.to(keys.dtype), keys, total, input_precision=PRECISION)


@triton.jit
def visit_keys(
    total: tl.tensor, begin: tl.tensor, stop: tl.tensor, queries: tl.tensor, slope: tl.tensor,
    row_facts: tl.tuple, k: tl.tensor, v: tl.tensor, k_strides: tl.tuple, v_strides: tl.tuple,
    place: tl.tuple, first: tl.tensor, end: tl.tensor, length: tl.tensor, inputs: tl.tuple,
    IS_CUT: tl.constexpr, STAGES: tl.constexpr, SCORES: tl.constexpr, DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add what the keys from ``begin`` to ``stop`` do to the gradient of the rows at ``place``."""
    for start in tl.range(begin, stop, BLOCK_N, num_stages=STAGES, disable_licm=STAGES == 1):
        total = visit_tile(
            total, start, queries, slope, row_facts, k, v, k_strides, v_strides, place, first, end,
            length, inputs, IS_CUT, SCORES, DERIVATIVE, SCALE, BEFORE, AFTER, HEAD_DIM,
            VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
        )  # fmt: skip
    return total


@triton.jit
def visit_kept_keys(
    total: tl.tensor, begin: tl.tensor, stop: tl.tensor, flags: tl.tensor, is_all: tl.tensor,
    queries: tl.tensor, slope: tl.tensor,
    row_facts: tl.tuple, k: tl.tensor, v: tl.tensor, k_strides: tl.tuple, v_strides: tl.tuple,
    place: tl.tuple, first: tl.tensor, end: tl.tensor, length: tl.tensor, inputs: tl.tuple,
    STAGES: tl.constexpr, SCORES: tl.constexpr, DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The same for tiles that ``flags`` of this block of rows keep, or where ``is_all``."""
    stop_tile = tl.cdiv(stop, BLOCK_N)
    for group in tl.range(begin // BLOCK_N, stop_tile, WORD):
        bits, count = kept_bits(flags, group, stop_tile, 1, is_all)
        for _ in tl.range(0, count, num_stages=STAGES, disable_licm=STAGES == 1):
            start = (group + lowest_of(bits)) * BLOCK_N
            bits = bits & (bits - 1)
            total = visit_tile(
                total, start, queries, slope, row_facts, k, v, k_strides, v_strides, place, first,
                end, length, inputs, True, SCORES, DERIVATIVE, SCALE, BEFORE, AFTER,
                HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
            )  # fmt: skip
    return total


@triton.jit(do_not_specialize=["rows", "together"])
def attention_gradient_queries(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, slopes: tl.tensor, bases: tl.tensor, delta: tl.tensor,
    poison: tl.tensor, shares: tl.tensor, q_gradient: tl.tensor, inputs: tl.tuple,
    lengths: tl.tuple, kept: tl.tensor, kept_heads: tl.tensor,
    heads: tl.tensor, rows: tl.tensor, keys: tl.tensor, together: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, slopes_strides: tl.tuple,
    q_gradient_strides: tl.tuple,
    SCORES: tl.constexpr, DERIVATIVE: tl.constexpr, SCALE: tl.constexpr, GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
    ONE_LOOP: tl.constexpr,
) -> None:  # fmt: skip
    """Write ``q_gradient``, every element; see ``AttentionSpec``.

    One program for each block of rows of each query head of each batch, dealt out ``together`` (see
    ``launch_order``). ``bases``, ``delta``, ``poison`` and ``shares`` are those of
    ``attention_gradient_rows``. ``kept`` is what ``find_kept`` left, of ``kept_heads``, or None:
    then every tile is read that rows see by their place, and so it is in heads of which a row is
    NaN, which is NaN where it is hidden too. ONE_LOOP takes all of those for tiles that are cut.
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    turn, unit = dealt(tl.program_id(0), blocks, tl.num_programs(0) // blocks, together)
    corner = (blocks - 1 - turn) * BLOCK_M
    head, batch = unit % heads, unit // heads
    row = corner + tl.arange(0, BLOCK_M)
    row_inside = row < rows
    place = (batch, head, row, row_inside)
    q = of_head(q, q_strides, batch, head)
    queries = load_tile(q, corner, q_strides, row_inside, BLOCK_M, HEAD_DIM, BLOCK_D, True)
    slopes = of_head(slopes, slopes_strides, batch, head)
    slope = load_tile(slopes, corner, slopes_strides, row_inside, BLOCK_M, VALUE_DIM, BLOCK_V, True)
    k = of_head(k, k_strides, batch, head // GROUPS)
    v = of_head(v, v_strides, batch, head // GROUPS)
    heads_rows = (batch.to(tl.int64) * heads + head) * rows
    row_facts = load_rows(bases + heads_rows, delta + heads_rows, None, row, row_inside)

    length, until = length_of(lengths, batch, keys), end_of(lengths, batch, keys)
    own = own_key(row, rows, until, ALIGN)
    first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
    lowest = own_key(corner, rows, until, ALIGN)
    highest = own_key(tl.minimum(corner + BLOCK_M, rows) - 1, rows, until, ALIGN)
    begin = first_seen(lowest, BEFORE) // BLOCK_N * BLOCK_N
    stop = end_seen(highest, length, AFTER)
    whole_begin = tl.cdiv(first_seen(highest, BEFORE), BLOCK_N) * BLOCK_N
    whole_stop = end_seen(lowest, length, AFTER) // BLOCK_N * BLOCK_N

    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if kept is not None:
        flags = flags_of(kept, kept_heads, batch, head, rows, keys, BLOCK_M, BLOCK_N)
        flags += corner // BLOCK_M * tl.cdiv(keys, BLOCK_N)
        own_poison = tl.load(poison + batch * heads + head)
        total = visit_kept_keys(
            total, begin, stop, flags, own_poison != own_poison, queries, slope, row_facts, k, v,
            k_strides, v_strides, place, first, end, length, inputs, STAGES, SCORES, DERIVATIVE,
            SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N,
            BLOCK_D, BLOCK_V,
        )  # fmt: skip
    else:
        cut_begin = begin
        if not ONE_LOOP:
            if BEFORE is not None:
                total = visit_keys(
                    total, begin, tl.minimum(whole_begin, stop), queries, slope, row_facts, k, v,
                    k_strides, v_strides, place, first, end, length, inputs, True, STAGES, SCORES,
                    DERIVATIVE, SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N,
                    BLOCK_D, BLOCK_V,
                )  # fmt: skip
            total = visit_keys(
                total, whole_begin, whole_stop, queries, slope, row_facts, k, v, k_strides,
                v_strides, place, first, end, length, inputs, False, STAGES, SCORES, DERIVATIVE,
                SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
            )  # fmt: skip
            cut_begin = tl.maximum(whole_begin, whole_stop)
        total = visit_keys(
            total, cut_begin, stop, queries, slope, row_facts, k, v, k_strides, v_strides, place,
            first, end, length, inputs, True, STAGES, SCORES, DERIVATIVE, SCALE, BEFORE, AFTER,
            HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
        )  # fmt: skip
    if shares is not None:
        # Of all that a row is a sum of, so behind the loop.
        total *= tl.load(shares + heads_rows + row, mask=row_inside, other=0.0)[:, None]
    q_gradient = of_head(q_gradient, q_gradient_strides, batch, head)
    store_tile(q_gradient, corner, q_gradient_strides, row_inside, total * SCALE, BLOCK_M, HEAD_DIM,
               BLOCK_D)  # fmt: skip
