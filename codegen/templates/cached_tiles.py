"""Tiles of a cache: read where they lie, and taken into the sums of packed rows."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl
from triton import knobs

from overlapc.codegen.templates.hidden import WORD, count_of, kept_tiles, lowest_of
from overlapc.codegen.templates.softmax import (
    beside_scores,
    exp_apart,
    fixed_weights,
    or_zero,
    score_tile,
    unit_of,
)

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def of_keys(
    head: tl.tensor, strides: tl.tuple, table: tl.tensor, tile: tl.tensor, inside: tl.tensor,
    BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Pointers to the first elements of the keys, or values, of a tile, ``[BLOCK_N]``.

    With PAGE, ``table`` says which page holds each PAGE keys; ``strides`` begin with that of pages.
    It is asked for keys that are ``inside`` alone, and of those of one page at once.
    """
    start = tl.cast(tile, tl.int32) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    if PAGE == 0:
        places = start.to(tl.int64) * strides[2] + n * strides[2]
    elif PAGE % BLOCK_N == 0:
        page = tl.load(table + start // PAGE).to(tl.int64)
        places = page * strides[0] + ((start & (PAGE - 1)) + n) * strides[2]
    else:
        # A tile is of whole pages: where a key lies in its own is known before the loop.
        tl.static_assert(BLOCK_N % PAGE == 0)
        at = table + start // PAGE + n // PAGE
        page = tl.load(at, mask=inside, other=0).to(tl.int64)
        places = page * strides[0] + (n & (PAGE - 1)) * strides[2]
    return head + places


@triton.jit
def load_part(
    keys: tl.tensor, inside: tl.tensor, stride: tl.tensor, FIRST: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, IS_CUT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``[keys, FIRST : FIRST+BLOCK]``; unread zeros from DIM on; with IS_CUT after the last key."""
    column = FIRST + tl.arange(0, BLOCK)
    places = keys[:, None] + column[None, :] * stride
    if IS_CUT:
        part = tl.load(places, mask=inside[:, None] & (column < DIM)[None, :], other=0.0)
    elif FIRST + BLOCK > DIM:
        part = tl.load(places, mask=(column < DIM)[None, :], other=0.0)
    else:
        part = tl.load(places)
    return part


@triton.jit
def load_pairs(
    keys: tl.tensor, inside: tl.tensor, DIM: tl.constexpr, BLOCK: tl.constexpr,
    dtype: tl.constexpr, IS_CUT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Even and odd columns of ``[keys, 0 : BLOCK]`` of float8_e4m3fn, ``[keys, BLOCK / 2]`` each in
    ``dtype``; as ``load_part`` of an even DIM whose elements follow one another.

    Of numbers of 16 bits threads take what matrix units want of them from shared memory in pieces
    of 16 bytes; of bytes one by one. So a pair is loaded as one, and widened as one.
    """
    pair = tl.arange(0, BLOCK // 2)
    places = keys.to(tl.pointer_type(tl.int16), bitcast=True)[:, None] + pair[None, :]
    if IS_CUT:
        both = tl.load(places, mask=inside[:, None] & (pair < DIM // 2)[None, :], other=0)
    elif BLOCK > DIM:
        both = tl.load(places, mask=(pair < DIM // 2)[None, :], other=0)
    else:
        both = tl.load(places)
    if INTERPRETED:
        even = both.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        odd = (both >> 8).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        wide = tl.inline_asm_elementwise(
            "cvt.rn.f16x2.e4m3x2 $0, $1;", "=r,h", [both], dtype=tl.int32, is_pure=True, pack=1
        )  # fmt: skip
        even = wide.to(tl.int16).to(tl.float16, bitcast=True)
        odd = (wide >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return even.to(tl.float32).to(dtype), odd.to(tl.float32).to(dtype)


@triton.jit
def no_total(BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, PAIRS: tl.constexpr) -> tl.tensor:
    """Sums of values of no key; of PAIRS those of even columns, and of odd ones."""
    if PAIRS:
        HALF: tl.constexpr = BLOCK_V // 2
        total = (tl.zeros((BLOCK_M, HALF), tl.float32), tl.zeros((BLOCK_M, HALF), tl.float32))
    else:
        total = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    return total


@triton.jit
def whole_total(total: tl.tensor, PAIRS: tl.constexpr) -> tl.tensor:
    """``[rows, columns]`` of ``no_total`` and what was added to it."""
    if PAIRS:
        even, odd = total
        total = tl.reshape(tl.join(even, odd), (even.shape[0], 2 * even.shape[1]))
    return total


@triton.jit
def widened(part: tl.tensor, dtype: tl.constexpr, IS_AMD: tl.constexpr) -> tl.tensor:
    """What was loaded, in the dtype of the queries; bytes are float8_e4m3fn.

    So they come to devices that do not convert it: in place as bits of float16 they are 2^-8 of
    themselves, subnormal numbers as well, and the one pattern beyond the largest is NaN.
    """
    if part.dtype == tl.float8e4nv and dtype == tl.bfloat16 and not IS_AMD:
        # Exact all the way, and two numbers an instruction: from float16 straight to bfloat16
        # NVIDIA has but one that takes numbers singly, at a quarter of the rate.
        part = part.to(tl.float16).to(tl.float32)
    if part.dtype == tl.uint8:
        size = (part & 0x7F).to(tl.uint16)
        bits = (size << 7) | ((part & 0x80).to(tl.uint16) << 8)
        number = bits.to(tl.float16, bitcast=True) * 256.0
        part = tl.where(size == 0x7F, float("nan"), number)
    return part.to(dtype)


@triton.jit
def in_float16(
    queries: tl.tensor, rest: tl.tensor, BLOCK_REST: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Queries of bfloat16 and their rest in float16, over a power of two of each row, ``[rows]``.

    For keys of float8, which are of float16 in half an instruction a number, of bfloat16 in two.
    The largest number of a row has 2^14 here, so what float16 cannot hold is 2^-39 of it: less than
    is lost as products are added up in float32. What is not finite stays so.
    """
    largest = tl.max(tl.abs(queries.to(tl.float32)), 1)
    if BLOCK_REST > 0:
        largest = tl.maximum(largest, tl.max(tl.abs(rest.to(tl.float32)), 1))
    # Numbers below 2^-112 alone would ask for a factor that is none; they are zero beside any key.
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 15)
    times = ((268 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    over = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    queries = (queries.to(tl.float32) * times).to(tl.float16)
    if BLOCK_REST > 0:
        rest = (rest.to(tl.float32) * times).to(tl.float16)
    return queries, rest, over


@triton.jit
def visit_tile(
    peak: tl.tensor, sums: tl.tensor, total: tl.tensor, tile: tl.tensor,
    query: tl.tuple, scale: tl.tensor, cache: tl.tuple, place: tl.tuple, inputs: tl.tuple,
    STEP: tl.constexpr, IS_CUT: tl.constexpr, SCORES: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr, BLOCK_V: tl.constexpr, PAGE: tl.constexpr,
    WEIGHTS: tl.constexpr, PAIRS: tl.constexpr, IS_AMD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take a tile of keys into (peak, sums, total) of packed rows.

    STEP is ``fixed``: weights are relative to peak, which stays; ``again``: so too, however far
    scores are from zero; ``first``: to the tile's maximum,
    which peak becomes; ``online``: to the maximum so far, and sums and total are rescaled;
    ``maximum``: peak alone is raised. Where nothing is rescaled ``sums`` keep the columns of the
    tile apart: to add up a row costs a round between threads, and the loop is spared it. IS_CUT:
    not every row sees every key. WEIGHTS is their dtype, in which values are multiplied; keys are
    in that of the queries. PAIRS: values are taken as ``load_pairs`` does. ``scale`` is a constant
    but where a cache brings one.
    """
    queries, rest_of_queries = query
    k, v, k_strides, v_strides, table, length, oldest = cache
    batch, head, row, row_inside, first, end = place
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < length
    if IS_CUT and PAGE > 0 and PAGE < BLOCK_N and BEFORE is not None:
        # Servers give up pages before all windows, and their tables name none there.
        inside = inside & (column >= oldest)
    if SHARED:
        # Values are where keys begin, and k holds what follows of each.
        at = of_keys(v, v_strides, table, tile, inside, BLOCK_N, PAGE)
        keys = load_part(at, inside, v_strides[3], 0, VALUE_DIM, BLOCK_D, IS_CUT)
        REST_FROM: tl.constexpr = 0
        REST_TO: tl.constexpr = HEAD_DIM - VALUE_DIM
    else:
        at = of_keys(k, k_strides, table, tile, inside, BLOCK_N, PAGE)
        keys = load_part(at, inside, k_strides[3], 0, HEAD_DIM, BLOCK_D, IS_CUT)
        REST_FROM: tl.constexpr = BLOCK_D
        REST_TO: tl.constexpr = HEAD_DIM
    product = tl.dot(
        queries, widened(keys, queries.dtype, IS_AMD).T, input_precision=PRECISION
    )  # fmt: skip
    if BLOCK_REST > 0:
        if SHARED:
            at = of_keys(k, k_strides, table, tile, inside, BLOCK_N, PAGE)
        rest = load_part(at, inside, k_strides[3], REST_FROM, REST_TO, BLOCK_REST, IS_CUT)
        rest = widened(rest, queries.dtype, IS_AMD)
        product = tl.dot(rest_of_queries, rest.T, product, input_precision=PRECISION)
    if SHARED:
        values = widened(keys, WEIGHTS, IS_AMD)
    elif STEP != "maximum":
        at = of_keys(v, v_strides, table, tile, inside, BLOCK_N, PAGE)
        if PAIRS:
            values = load_pairs(at, inside, VALUE_DIM, BLOCK_V, WEIGHTS, IS_CUT)
        else:
            values = load_part(at, inside, v_strides[3], 0, VALUE_DIM, BLOCK_V, IS_CUT)
            values = widened(values, WEIGHTS, IS_AMD)

    keys_of_tile = (batch, head, row, row_inside, column, inside)
    score = score_tile(
        product, keys_of_tile, first, end, inputs, SCORES, scale, BEFORE, AFTER, IS_CUT
    )
    UNIT: tl.constexpr = unit_of(SCORES, scale)
    base = peak
    if STEP == "online":
        peak = tl.maximum(peak, tl.max(score, 1))
        shrunk = exp_apart(base, or_zero(peak), UNIT)
        base = or_zero(peak)
        sums = sums * shrunk
        if PAIRS:
            total = (total[0] * shrunk[:, None], total[1] * shrunk[:, None])
        else:
            total = total * shrunk[:, None]
    elif STEP == "first":
        peak = tl.max(score, 1)
        base = or_zero(peak)
    elif STEP == "maximum":
        peak = tl.maximum(peak, tl.max(score, 1))
    if STEP != "maximum":
        # Summed as they are rounded: what overflows or is lost shows in the sum.
        if STEP == "online":
            weights = beside_scores(score, base[:, None], UNIT, SCORES, WEIGHTS).to(WEIGHTS)
            sums += tl.sum(weights.to(tl.float32), 1)
        else:
            weights = fixed_weights(score, base, UNIT, STEP == "fixed", WEIGHTS)
            taken = weights.to(tl.float32)
            sums += taken if len(sums.shape) == 2 else tl.sum(taken, 1)
        if PAIRS:
            total = (
                tl.dot(weights, values[0], total[0], input_precision=PRECISION),
                tl.dot(weights, values[1], total[1], input_precision=PRECISION),
            )
        else:
            total = tl.dot(weights, values, total, input_precision=PRECISION)
    return peak, sums, total


@triton.jit
def visit_each(
    peak: tl.tensor, sums: tl.tensor, total: tl.tensor,
    begin: tl.tensor, stop: tl.tensor, step: tl.tensor, floor: tl.tensor,
    query: tl.tuple, scale: tl.tensor, cache: tl.tuple, place: tl.tuple, inputs: tl.tuple,
    STEP: tl.constexpr, HIDES: tl.constexpr, SCORES: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_V: tl.constexpr, PAGE: tl.constexpr,
    WEIGHTS: tl.constexpr, PAIRS: tl.constexpr, IS_AMD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take each ``step``-th tile from ``begin`` on, not every row of which sees every key; with
    HIDES those that masks keep for some row, see ``hidden``.

    Which they are is known before the first is read, so that keys are loaded ahead as ever.
    """
    if HIDES == "":
        for tile in tl.range(begin, stop, step):
            peak, sums, total = visit_tile(
                peak, sums, total, tile, query, scale, cache, place, inputs, STEP, True, SCORES,
                BEFORE, AFTER, HEAD_DIM, VALUE_DIM, SHARED, PRECISION, BLOCK_N, BLOCK_D,
                BLOCK_REST, BLOCK_V, PAGE, WEIGHTS, PAIRS, IS_AMD,
            )  # fmt: skip
    else:
        for group in tl.range(begin, stop, step * WORD):
            bits = kept_tiles(
                group, stop, step, floor, (place[0], place[1], place[2], place[3]), place[4],
                place[5], cache[5], inputs, SCORES, BEFORE, AFTER, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            for _ in tl.range(0, count_of(bits)):
                tile = group + lowest_of(bits) * step
                bits = bits & (bits - 1)
                peak, sums, total = visit_tile(
                    peak, sums, total, tile, query, scale, cache, place, inputs, STEP, True,
                    SCORES, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, SHARED, PRECISION, BLOCK_N, BLOCK_D,
                    BLOCK_REST, BLOCK_V, PAGE, WEIGHTS, PAIRS, IS_AMD,
                )  # fmt: skip
    return peak, sums, total
