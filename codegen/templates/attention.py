"""Attention of many rows: a CTA for each batch, head and block of rows, which walks over the keys.

Relative to a φ that is known before, weights and their sums need no running maximum; a row whose
sum left the range in which that is exact is computed again, in the same CTA, relative to its
maximum. With ``online`` the running maximum is kept, and nothing is computed again.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.head_tiles import load_keys, load_tile, of_head, store_tile
from overlapc.codegen.templates.hidden import WORD, flags_of, lowest_of
from overlapc.codegen.templates.launch_order import dealt
from overlapc.codegen.templates.masks_tell import any_keeps_key, keeping_none
from overlapc.codegen.templates.running import moves_of, settle
from overlapc.codegen.templates.softmax import (
    all_finite,
    beside_scores,
    divided,
    exp_apart,
    fixed_weights,
    gathered_sums,
    in_units,
    is_exact,
    is_without_keys,
    or_zero,
    score_tile,
    sink_relative_to,
    spread_sums,
    store_logarithms,
    unit_of,
)
from overlapc.codegen.templates.tile_products import product_of, take_values
from overlapc.codegen.templates.values_behind import visit_ahead
from overlapc.codegen.templates.visible import end_of, end_seen, first_seen, length_of, own_key


@triton.jit
def visit_tile(
    peak: tl.tensor, sums: tl.tensor, total: tl.tensor, start: tl.tensor,
    queries: tl.tensor, k: tl.tuple, v: tl.tuple, place: tl.tuple,
    first: tl.tensor, end: tl.tensor, length: tl.tensor, inputs: tl.tuple,
    STEP: tl.constexpr, IS_CUT: tl.constexpr, SCORES: tl.constexpr, SCALE: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take the tile of keys from ``start`` on into (peak, sums, total) of the rows at ``place``.

    ``k`` and ``v`` are sides of ``load_keys``. STEP is ``maximum``: peak alone is raised;
    ``fixed``: weights are relative to peak, which stays; ``again``: so too, however far scores are
    from zero; ``online``: it is raised, and sums and total are rescaled. IS_CUT: not every row sees
    every key.
    """
    UNIT: tl.constexpr = unit_of(SCORES, SCALE)
    column = start + tl.arange(0, BLOCK_N)
    inside = column < length
    product = product_of(
        start, inside, queries, k, IS_CUT, HEAD_DIM, PRECISION, BLOCK_N, BLOCK_D
    )  # fmt: skip
    tile = (place[0], place[1], place[2], place[3], column, inside)
    score = score_tile(product, tile, first, end, inputs, SCORES, SCALE, BEFORE, AFTER, IS_CUT)
    if STEP == "maximum":
        peak = tl.maximum(peak, tl.max(score, 1))
    else:
        base = peak
        if STEP == "online":
            higher = tl.maximum(peak, tl.max(score, 1))
            base = or_zero(higher)
            shrunk = exp_apart(peak, base, UNIT)
            sums = sums * (shrunk[:, None] if len(sums.shape) == 2 else shrunk)
            total = total * shrunk[:, None]
            peak = higher
        values = load_keys(v, start, inside, BLOCK_N, VALUE_DIM, BLOCK_V, IS_CUT)
        TYPE: tl.constexpr = v[0].dtype.element_ty
        if STEP == "online":
            weights = beside_scores(score, base[:, None], UNIT, SCORES, TYPE).to(TYPE)
        else:
            weights = fixed_weights(score, base, UNIT, STEP == "fixed", TYPE)
        sums, total = take_values(weights, values, sums, total, PRECISION)
    return peak, sums, total


@triton.jit
def visit_keys(
    peak: tl.tensor, sums: tl.tensor, total: tl.tensor, begin: tl.tensor, stop: tl.tensor,
    kept: tl.tensor,
    queries: tl.tensor, k: tl.tuple, v: tl.tuple, place: tl.tuple,
    first: tl.tensor, end: tl.tensor, length: tl.tensor, inputs: tl.tuple,
    STEP: tl.constexpr, IS_CUT: tl.constexpr, STAGES: tl.constexpr,
    SCORES: tl.constexpr, SCALE: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take the tiles from key ``begin`` to ``stop``, as ``visit_tile`` does each; those alone of
    which ``kept`` says that some row keeps a key, where it is given.

    STAGES deep are loads begun before they are needed.
    """
    if kept is None:
        for start in tl.range(begin, stop, BLOCK_N, num_stages=STAGES, disable_licm=STAGES == 1):
            peak, sums, total = visit_tile(
                peak, sums, total, start, queries, k, v, place, first, end, length, inputs, STEP,
                IS_CUT, SCORES, SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N,
                BLOCK_D, BLOCK_V,
            )  # fmt: skip
    else:
        stop_tile = tl.cdiv(stop, BLOCK_N)
        # Which they are is known before the first is read, so that keys are loaded ahead as ever.
        for group in tl.range(begin // BLOCK_N, stop_tile, WORD):
            lane = tl.arange(0, 32)
            inside = (lane < WORD) & (group + lane < stop_tile)
            flags = tl.load(kept + group + lane, mask=inside, other=0)
            bits = tl.sum(flags << lane, 0)
            count = tl.sum(flags, 0)
            for _ in tl.range(0, count, num_stages=STAGES, disable_licm=STAGES == 1):
                start = (group + lowest_of(bits)) * BLOCK_N
                bits = bits & (bits - 1)
                peak, sums, total = visit_tile(
                    peak, sums, total, start, queries, k, v, place, first, end, length, inputs,
                    STEP, IS_CUT, SCORES, SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, PRECISION,
                    BLOCK_N, BLOCK_D, BLOCK_V,
                )  # fmt: skip
    return peak, sums, total


@triton.jit
def write_rows(
    out: tl.tensor, lse: tl.tensor, peak: tl.tensor, sums: tl.tensor, total: tl.tensor,
    corner: tl.tensor, row: tl.tensor, inside: tl.tensor, out_strides: tl.tuple,
    UNIT: tl.constexpr, DEAD: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:  # fmt: skip
    """Store weighted means, and logarithms of sums, of those rows of a head that are inside."""
    result = divided(total, sums, DEAD)
    store_tile(out, corner, out_strides, inside, result, BLOCK_M, VALUE_DIM, BLOCK_V)
    if lse is not None:
        store_logarithms(lse + row, peak, sums, inside, UNIT)


@triton.jit(do_not_specialize=["rows", "together"])
def attention_forward(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, out: tl.tensor, lse: tl.tensor, inputs: tl.tuple,
    lengths: tl.tuple, phi: tl.tensor, moves: tl.tensor, sinks: tl.tensor, redone: tl.tensor,
    kept: tl.tensor, kept_heads: tl.tensor,
    k_by_tma: tl.tensor_descriptor, v_by_tma: tl.tensor_descriptor,
    heads: tl.tensor, rows: tl.tensor, keys: tl.tensor, together: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, out_strides: tl.tuple,
    SCORES: tl.constexpr, SCALE: tl.constexpr, GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr,
    SOFTMAX: tl.constexpr, BOUND: tl.constexpr, DEAD: tl.constexpr, MASKS_TELL: tl.constexpr,
    LEAST: tl.constexpr, LEAST_EACH: tl.constexpr, MOST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr, ONES: tl.constexpr, AHEAD: tl.constexpr,
) -> None:  # fmt: skip
    """``out = softmax(scores) @ v`` for queries ``q``; see ``AttentionSpec``.

    One program for each block of rows of each query head of each batch, dealt out ``together`` (see
    ``launch_order``). ``lse``, contiguous [batch, heads, rows], or None, is given the logarithm of
    each row's sum of ``exp(score)``. ``lengths``, ``phi`` and ``sinks`` are None where the spec has
    none, and ``moves`` where launches do not move φ (see ``running``). ``k_by_tma`` and
    ``v_by_tma`` are descriptors of k and v, in blocks ``[1, 1, BLOCK_N, BLOCK_D or BLOCK_V]``, or
    None. The number of rows that were computed again is added to ``redone``. ``kept`` is what
    ``find_kept`` left, of ``kept_heads``, or None: then every tile of keys is read that rows see by
    their place.
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    turn, unit = dealt(tl.program_id(0), blocks, tl.num_programs(0) // blocks, together)
    # The last rows of a causal attention see most keys: they begin first.
    corner = (blocks - 1 - turn) * BLOCK_M
    head, batch = unit % heads, unit // heads
    row = corner + tl.arange(0, BLOCK_M)
    row_inside = row < rows
    place = (batch, head, row, row_inside)
    q = of_head(q, q_strides, batch, head)
    queries = load_tile(q, corner, q_strides, row_inside, BLOCK_M, HEAD_DIM, BLOCK_D, True)
    shared = head // GROUPS
    k = (of_head(k, k_strides, batch, shared), k_strides, k_by_tma, True, batch, shared)
    # What is there beyond a sequence may be NaN, which no weight of zero removes.
    v = (of_head(v, v_strides, batch, shared), v_strides, v_by_tma, lengths is None, batch, shared)

    length = length_of(lengths, batch, keys)
    sequence_end = end_of(lengths, batch, keys)
    own = own_key(row, rows, sequence_end, ALIGN)
    first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
    # Of the whole block: tiles from ``begin`` to ``stop`` are seen by some row, those from
    # ``whole_begin`` to ``whole_stop`` by every row and to their last key.
    lowest = own_key(corner, rows, sequence_end, ALIGN)
    last_row = tl.minimum(corner + BLOCK_M, rows) - 1
    highest = own_key(last_row, rows, sequence_end, ALIGN)
    begin = first_seen(lowest, BEFORE) // BLOCK_N * BLOCK_N
    stop = end_seen(highest, length, AFTER)
    whole_begin = tl.cdiv(first_seen(highest, BEFORE), BLOCK_N) * BLOCK_N
    whole_stop = end_seen(lowest, length, AFTER) // BLOCK_N * BLOCK_N

    if kept is not None:
        kept = flags_of(kept, kept_heads, batch, head, rows, keys, BLOCK_M, BLOCK_N)
        kept += corner // BLOCK_M * tl.cdiv(keys, BLOCK_N)

    UNIT: tl.constexpr = unit_of(SCORES, SCALE)
    sink = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if sinks is not None:
        sink = tl.full((BLOCK_M,), 0.0, tl.float32) + in_units(tl.load(sinks + head), UNIT)
    nothing = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)

    if SOFTMAX == "online":
        peak = sink
        sums = tl.where(sink == float("-inf"), 0.0, 1.0)
        STEP: tl.constexpr = "online"
    else:
        # What first keys tell may be a mask, and is not told from a row of no key if it fails.
        IS_OWN: tl.constexpr = SOFTMAX == "first_tile" and (
            SCORES is not None or v[0].dtype.element_ty == tl.float32
        )
        STEP: tl.constexpr = "again" if IS_OWN else "fixed"
        peak = nothing
        if SOFTMAX == "bound":
            peak = nothing + BOUND / UNIT
        elif SOFTMAX == "head" or SOFTMAX == "running":
            peak = nothing + tl.load(phi + head) * (1.0 / UNIT)
        elif SOFTMAX == "sink":
            peak = or_zero(sink)
        elif SOFTMAX == "first_tile":
            # Of those that every row sees; a row that masks leave none of them takes the next ones.
            start = tl.where(whole_begin < whole_stop, whole_begin, begin)
            peak = sink
            waits = row_inside & (end > first)
            left = tl.cdiv(stop - begin, BLOCK_N)
            while (left > 0) & (tl.sum(waits.to(tl.int32), 0) > 0):
                is_seen = True
                if kept is not None:
                    is_seen = tl.load(kept + start // BLOCK_N) > 0
                if MASKS_TELL and is_seen:
                    is_seen = any_keeps_key(
                        waits, start, place, first, end, length, inputs, None, SCORES, BEFORE,
                        AFTER, BLOCK_M, BLOCK_N,
                    )  # fmt: skip
                if is_seen:
                    found, _, _ = visit_keys(
                        peak, nothing, total, start, tl.minimum(start + BLOCK_N, stop), None,
                        queries, k, v, place, first, end, length, inputs, "maximum", True, 1,
                        SCORES, SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N,
                        BLOCK_D, BLOCK_V,
                    )  # fmt: skip
                    peak = tl.where(waits, found, peak)
                    waits = waits & (peak == float("-inf"))
                start += BLOCK_N
                start = tl.where(start < stop, start, begin)
                left -= 1
            peak = or_zero(peak)
        sums = nothing
    sums = spread_sums(sums, ONES, BLOCK_M)

    if BEFORE is not None and kept is None:
        peak, sums, total = visit_keys(
            peak, sums, total, begin, tl.minimum(whole_begin, stop), None, queries, k, v, place,
            first, end, length, inputs, STEP, True, STAGES, SCORES, SCALE, BEFORE, AFTER, HEAD_DIM,
            VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
        )  # fmt: skip
    rest = begin
    if AHEAD and kept is None:
        sums, total = visit_ahead(
            peak, sums, total, whole_begin, whole_stop, queries, k, v, STAGES, SCALE,
            HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
        )  # fmt: skip
        rest = tl.maximum(whole_begin, whole_stop)
    elif kept is None:
        peak, sums, total = visit_keys(
            peak, sums, total, whole_begin, whole_stop, None, queries, k, v, place, first, end,
            length, inputs, STEP, False, STAGES, SCORES, SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM,
            PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
        )  # fmt: skip
        rest = tl.maximum(whole_begin, whole_stop)
    peak, sums, total = visit_keys(
        peak, sums, total, rest, stop, kept, queries, k, v, place, first, end, length, inputs, STEP,
        True, STAGES, SCORES, SCALE, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, PRECISION, BLOCK_N,
        BLOCK_D, BLOCK_V,
    )  # fmt: skip

    sums = gathered_sums(sums)
    of_keys = sums
    if SOFTMAX != "online" and sinks is not None:
        sums += sink_relative_to(sink, peak, UNIT, STEP == "fixed", v[0].dtype.element_ty)
    out = of_head(out, out_strides, batch, head)
    if lse is not None:
        lse += (batch.to(tl.int64) * heads + head) * rows
    write_rows(
        out, lse, peak, sums, total, corner, row, row_inside, out_strides, UNIT, DEAD,
        VALUE_DIM, BLOCK_M, BLOCK_V,
    )  # fmt: skip
    if SOFTMAX != "online":
        # What was written is written again: sums that wait for this would take registers of it.
        seen = tl.maximum(end - first, 0)
        tl.debug_barrier()
        # Read back: Triton 3.6 cannot reduce sums of tensor memory (sm_100) to a branch.
        written = load_tile(out, corner, out_strides, row_inside, BLOCK_M, VALUE_DIM, BLOCK_V, True)
        is_finite = all_finite(written.to(tl.float32))
        is_good = is_exact(of_keys, sums, sink, peak, seen, LEAST, LEAST_EACH, MOST) & is_finite
        is_alive = (seen > 0) | (sink > float("-inf"))
        is_bad = row_inside & is_alive & (is_good == 0)
        # A row of no weight may see no key, and has been computed then.
        if SOFTMAX == "first_tile":
            is_bad = is_bad & (sums != 0.0)
        elif MASKS_TELL:
            unseen = keeping_none(
                is_bad & is_without_keys(of_keys, sums, sink, LEAST, MOST), begin, stop, place,
                first, end, length, inputs, SCORES, BEFORE, AFTER, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            is_bad = is_bad & (unseen == 0)
        count = tl.sum(is_bad.to(tl.int32), 0)
        if count > 0:
            nothing_yet = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
            highest_score, _, _ = visit_keys(
                sink, nothing, nothing_yet, begin, stop, kept, queries, k, v, place, first, end,
                length, inputs, "maximum", True, 1, SCORES, SCALE, BEFORE, AFTER, HEAD_DIM,
                VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
            )  # fmt: skip
            # A row of minus infinity alone has been computed: it has no weight.
            is_bad = is_bad & (highest_score > float("-inf"))
            count = tl.sum(is_bad.to(tl.int32), 0)
            if count > 0:
                peak = or_zero(highest_score)
                sums_again = spread_sums(exp_apart(sink, peak, UNIT), ONES, BLOCK_M)
                peak, sums_again, total = visit_keys(
                    peak, sums_again, nothing_yet, begin, stop, kept, queries, k, v, place, first,
                    end, length, inputs, "again", True, 1, SCORES, SCALE, BEFORE, AFTER, HEAD_DIM,
                    VALUE_DIM, PRECISION, BLOCK_N, BLOCK_D, BLOCK_V,
                )  # fmt: skip
                sums = gathered_sums(sums_again)
                write_rows(
                    out, lse, peak, sums, total, corner, row, is_bad, out_strides, UNIT, DEAD,
                    VALUE_DIM, BLOCK_M, BLOCK_V,
                )  # fmt: skip
                tl.atomic_add(redone, count)
        if SOFTMAX == "running":
            own, has_sum = moves_of(peak, sums, tl.load(phi + head), row_inside, UNIT)
            tl.atomic_add(moves + head, tl.sum(own, 0), mask=count > 0, sem="relaxed")
            alive = tl.sum(has_sum.to(tl.int32), 0)
            settle(phi, moves, heads, head, alive, tl.num_programs(0) // heads, 1)
