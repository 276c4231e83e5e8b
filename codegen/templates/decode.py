"""Attention of few rows over many keys: CTAs share the keys out, and the last one adds up.

A CTA holds all rows of all query heads that read one head of keys, so that each key is read once.
They are packed: place i is row ``i // GROUPS`` of query head ``i % GROUPS`` of the group.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.cached_tiles import (
    in_float16,
    no_total,
    visit_each,
    visit_tile,
    whole_total,
)
from overlapc.codegen.templates.decode_parts import (
    add_sums,
    add_totals,
    beside_sink,
    store_part,
    store_rows,
)
from overlapc.codegen.templates.hidden import floors_of
from overlapc.codegen.templates.masks_tell import any_keeps_key, keeping_none
from overlapc.codegen.templates.running import moves_of, settle
from overlapc.codegen.templates.signal import await_stores
from overlapc.codegen.templates.softmax import (
    all_finite,
    in_units,
    is_exact,
    is_without_keys,
    or_zero,
    store_logarithms,
    unit_of,
)
from overlapc.codegen.templates.visible import end_of, end_seen, first_seen, length_of, own_key


@triton.jit(do_not_specialize=["rows", "keys", "splits", "table_stride"])
def attention_decode(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, out: tl.tensor, lse: tl.tensor, inputs: tl.tuple,
    lengths: tl.tuple, table: tl.tensor, k_scale: tl.tensor, v_scale: tl.tensor,
    phi: tl.tensor, sinks: tl.tensor, redone: tl.tensor,
    partials: tl.tensor, arrived: tl.tensor, moves: tl.tensor,
    heads: tl.tensor, rows: tl.tensor, keys: tl.tensor, splits: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, out_strides: tl.tuple,
    table_stride: tl.tensor, scale_stride: tl.tensor,
    SCORES: tl.constexpr, SCALE: tl.constexpr, GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, SHARED: tl.constexpr, PAGE: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr,
    SOFTMAX: tl.constexpr, BOUND: tl.constexpr, DEAD: tl.constexpr, MASKS_TELL: tl.constexpr,
    HIDES: tl.constexpr,
    LEAST: tl.constexpr, LEAST_EACH: tl.constexpr, MOST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr, LEAST_TILES: tl.constexpr, TOGETHER: tl.constexpr,
    COLUMNS: tl.constexpr, SPREAD: tl.constexpr,
    PAIRS: tl.constexpr, IS_AMD: tl.constexpr,
) -> None:  # fmt: skip
    """``out = softmax(scores) @ v`` for queries ``q``; see ``AttentionSpec`` and ``DecodeSpec``.

    The grid is (blocks of packed rows, splits); ``heads`` are those of keys. Program (i, s) takes
    run s of the tiles of keys that block i sees. How many runs there are every program computes
    alike from the length of the sequence, and those beyond end at once. With HIDES, which is what
    ``visibility.hides`` says of SCORES, a run is each so manyth tile, however many masks hide, and
    only those are read that some row keeps a key of. The others leave their sums
    in ``partials`` and add one to ``arrived``, which is zero before and after the launch; the one
    that finds all others there adds the sums up. Rows whose sums are not exact it computes again
    relative to the running maximum, and adds their number to ``redone``. ``moves`` is for a φ that
    launches move (see ``running``), or None. With PAIRS values are taken as ``load_pairs`` does.
    """
    unit = tl.program_id(0)
    split = tl.program_id(1)
    blocks = tl.cdiv(rows * GROUPS, BLOCK_M)
    corner = unit % blocks * BLOCK_M
    batch = unit // blocks // heads
    key_head = unit // blocks % heads
    packed = corner + tl.arange(0, BLOCK_M)
    row = packed // GROUPS
    row_inside = row < rows
    head = key_head * GROUPS + packed % GROUPS

    length = length_of(lengths, batch, keys)
    sequence_end = end_of(lengths, batch, keys)
    own = own_key(row, rows, sequence_end, ALIGN)
    first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
    # Of the whole block: tiles from ``begin`` on are seen by some row, those from ``whole`` to
    # ``whole_stop`` by every row and to their last key.
    lowest = own_key(corner // GROUPS, rows, sequence_end, ALIGN)
    last_row = tl.minimum((corner + BLOCK_M - 1) // GROUPS, rows - 1)
    highest = own_key(last_row, rows, sequence_end, ALIGN)
    oldest = first_seen(lowest, BEFORE)
    first_tile = oldest // BLOCK_N
    stop_tile = tl.cdiv(end_seen(highest, length, AFTER), BLOCK_N)
    tiles = tl.maximum(stop_tile - first_tile, 0)
    parts = tl.maximum(tl.minimum(tiles // LEAST_TILES, splits), 1)
    if split >= parts:
        return
    if HIDES == "":
        # None takes more than one tile more than another.
        more = tiles % parts
        begin = first_tile + split * (tiles // parts) + tl.minimum(split, more)
        stop = begin + tiles // parts + tl.where(split < more, 1, 0)
        step = 1
    else:
        begin = first_tile + split
        stop = first_tile + tiles
        step = parts

    column = tl.arange(0, BLOCK_D)
    lines = q + batch.to(tl.int64) * q_strides[0]
    lines += head.to(tl.int64) * q_strides[1] + row.to(tl.int64) * q_strides[2]
    places = lines[:, None] + column[None, :] * q_strides[3]
    queries = tl.load(places, mask=row_inside[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    rest_of_queries = queries  # where there is none, nothing
    if BLOCK_REST > 0:
        column = BLOCK_D + tl.arange(0, BLOCK_REST)
        places = lines[:, None] + column[None, :] * q_strides[3]
        inside = row_inside[:, None] & (column < HEAD_DIM)[None, :]
        rest_of_queries = tl.load(places, mask=inside, other=0.0)
    # A variable that is not declared as one, or lies in a tuple, is no constant.
    scale: tl.constexpr = SCALE
    if k_scale is not None:
        scale = tl.load(k_scale + key_head * scale_stride) * SCALE
    k += key_head.to(tl.int64) * k_strides[1]
    v += key_head.to(tl.int64) * v_strides[1]
    if PAGE == 0:
        k += batch.to(tl.int64) * k_strides[0]
        v += batch.to(tl.int64) * v_strides[0]
    else:
        table += batch.to(tl.int64) * table_stride
    WEIGHTS: tl.constexpr = queries.dtype
    if v.dtype.element_ty.primitive_bitwidth == 8 and queries.dtype == tl.bfloat16:
        queries, rest_of_queries, over = in_float16(queries, rest_of_queries, BLOCK_REST)
        scale = (over * scale)[:, None]
    query = (queries, rest_of_queries)
    UNIT: tl.constexpr = unit_of(SCORES, scale)
    cache = (k, v, k_strides, v_strides, table, length, oldest)
    place = (batch, head[:, None], row, row_inside, first, end)
    own_place = (batch, head[:, None], row, row_inside)
    floor = None
    if HIDES != "":
        # The last keys are kept beside padding on the left, the first ones of a buffer that is
        # longer than what it holds.
        floor = floors_of(
            tiles - 1, 0, first_tile, tiles, own_place, first, end, length, inputs, SCORES,
            BEFORE, AFTER, HIDES, BLOCK_M, BLOCK_N,
        )  # fmt: skip

    nothing = tl.zeros((BLOCK_M,), tl.float32)
    sink = nothing - float("inf")
    if sinks is not None:
        sink = in_units(tl.load(sinks + head, mask=row_inside, other=0.0), UNIT)
    total = no_total(BLOCK_M, BLOCK_V, PAIRS)
    IS_ONLINE: tl.constexpr = SOFTMAX == "online"
    # What first keys tell may be a mask, and is not told from a row of no key if it fails.
    IS_FAR: tl.constexpr = SCORES is not None or WEIGHTS == tl.float32  # noqa: SIM300
    IS_OWN: tl.constexpr = SOFTMAX == "first_tile" and IS_FAR
    STEP: tl.constexpr = "online" if IS_ONLINE else "again" if IS_OWN else "fixed"
    # Each part has a peak of its own; a φ that launches change, where two run at once.
    HAVE_PEAKS: tl.constexpr = IS_ONLINE or SOFTMAX == "first_tile" or SOFTMAX == "running"
    peak = nothing
    if IS_ONLINE:
        # A sink is a part of one sum: that of the first keys.
        peak = tl.where(split == 0, sink, float("-inf"))
        sums = tl.where(peak == float("-inf"), 0.0, 1.0)
    else:
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32) if SPREAD else nothing
        if SOFTMAX == "bound":
            peak = nothing + BOUND / UNIT
        elif SOFTMAX == "head" or SOFTMAX == "running":
            peak = tl.load(phi + head, mask=row_inside, other=0.0) * (1.0 / UNIT)
        elif SOFTMAX == "sink":
            peak = or_zero(sink)
        elif SOFTMAX == "first_tile":
            peak = nothing - float("inf")
            if begin < stop:
                if HIDES == "":  # else it may be hidden, and is found by the walk below
                    peak, sums, total = visit_tile(
                        peak, sums, total, begin, query, scale, cache, place, inputs, "first",
                        True, SCORES, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, SHARED, PRECISION,
                        BLOCK_N, BLOCK_D, BLOCK_REST, BLOCK_V, PAGE, WEIGHTS, PAIRS, IS_AMD,
                    )  # fmt: skip
                    begin += 1
                # Rows that see none of these take the first of the part that they do see.
                waits = row_inside & (peak == float("-inf"))
                waits = waits & (end > first)
                waits = waits & (first < stop * BLOCK_N) & (end > begin * BLOCK_N)
                next_tile = begin
                while (next_tile < stop) & (tl.sum(waits.to(tl.int32), 0) > 0):
                    is_seen = True
                    if MASKS_TELL:
                        is_seen = any_keeps_key(
                            waits, next_tile * BLOCK_N, own_place, first, end, length, inputs,
                            floor, SCORES, BEFORE, AFTER, BLOCK_M, BLOCK_N,
                        )  # fmt: skip
                    if is_seen:
                        found, _, _ = visit_tile(
                            peak, sums, total, next_tile, query, scale, cache, place, inputs,
                            "maximum", True, SCORES, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, SHARED,
                            PRECISION, BLOCK_N, BLOCK_D, BLOCK_REST, BLOCK_V, PAGE, WEIGHTS, PAIRS,
                            IS_AMD,
                        )  # fmt: skip
                        peak = tl.where(waits, found, peak)
                        waits = waits & (peak == float("-inf"))
                    next_tile += step
            peak = or_zero(peak)

    base = peak
    if HIDES == "":
        whole = tl.cdiv(first_seen(highest, BEFORE), BLOCK_N)
        whole = tl.minimum(tl.maximum(whole, begin), stop)
        whole_stop = end_seen(lowest, length, AFTER) // BLOCK_N
        whole_stop = tl.minimum(tl.maximum(whole_stop, whole), stop)
        for tile in tl.range(whole, whole_stop):
            peak, sums, total = visit_tile(
                peak, sums, total, tile, query, scale, cache, place, inputs, STEP, False, SCORES,
                BEFORE, AFTER, HEAD_DIM, VALUE_DIM, SHARED, PRECISION, BLOCK_N, BLOCK_D,
                BLOCK_REST, BLOCK_V, PAGE, WEIGHTS, PAIRS, IS_AMD,
            )  # fmt: skip
        before = whole - begin
        edges = before + stop - whole_stop
        if edges > 0:  # most CTAs have none, and are spared what is done ahead of a loop
            for edge in tl.range(0, edges):
                tile = tl.where(edge < before, begin + edge, whole_stop + edge - before)
                peak, sums, total = visit_tile(
                    peak, sums, total, tile, query, scale, cache, place, inputs, STEP, True,
                    SCORES, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, SHARED, PRECISION, BLOCK_N, BLOCK_D,
                    BLOCK_REST, BLOCK_V, PAGE, WEIGHTS, PAIRS, IS_AMD,
                )  # fmt: skip
    else:
        peak, sums, total = visit_each(
            peak, sums, total, begin, stop, step, floor, query, scale, cache, place, inputs, STEP,
            HIDES, SCORES, BEFORE, AFTER, HEAD_DIM, VALUE_DIM, SHARED, PRECISION, BLOCK_M, BLOCK_N,
            BLOCK_D, BLOCK_REST, BLOCK_V, PAGE, WEIGHTS, PAIRS, IS_AMD,
        )  # fmt: skip
    total = whole_total(total, PAIRS)
    if not IS_ONLINE:
        sums = tl.sum(sums, 1) if SPREAD else sums
        # A total may have overflowed, and shrinking the sum would hide it.
        sums = tl.where(sums > MOST, float("inf"), sums)
        if SOFTMAX == "first_tile":
            # Rows that see no key of the part say nothing of where φ lies. Where it runs, a sum of
            # zero may be one whose weights were lost, which another part's lower φ must not hide.
            peak = tl.where(sums == 0.0, float("-inf"), peak)

    # Results are written before any row is computed again, which takes as many registers.
    lines = out + batch.to(tl.int64) * out_strides[0]
    lines += head.to(tl.int64) * out_strides[1] + row.to(tl.int64) * out_strides[2]
    result = (lines, out_strides[3], v_scale, key_head * scale_stride)
    is_last = parts == 1
    is_finite = row_inside
    of_keys = sums
    HAS_SINK: tl.constexpr = sinks is not None and not IS_ONLINE
    if parts == 1:
        if HAS_SINK:
            peak, sums = beside_sink(peak, sums, sink, UNIT, STEP == "fixed", WEIGHTS)
        is_finite = all_finite(total)
        store_rows(result, 0, total, sums, row_inside, DEAD, VALUE_DIM)
    else:
        partials += unit.to(tl.int64) * splits * (BLOCK_M * (BLOCK_V + 2))
        store_part(peak, sums, total, partials, split, row_inside, BLOCK_M, BLOCK_V)
        await_stores(IS_AMD, False)
        is_last = tl.atomic_add(arrived + unit, 1, sem="acq_rel", scope="gpu") == parts - 1
        # And what it acquired holds for the CTA's other threads from here on.
        tl.debug_barrier()
        if is_last:
            tl.store(arrived + unit, 0)
            peak, sums = add_sums(
                peak, partials, parts, row_inside, UNIT, HAVE_PEAKS, BLOCK_M, BLOCK_V
            )  # fmt: skip
            of_keys = sums
            if HAS_SINK:
                peak, sums = beside_sink(peak, sums, sink, UNIT, STEP == "fixed", WEIGHTS)
            is_finite = add_totals(
                result, peak, sums, partials, parts, row_inside, UNIT, HAVE_PEAKS, DEAD,
                TOGETHER, COLUMNS, BLOCK_M, BLOCK_V, VALUE_DIM,
            )  # fmt: skip
    if not is_last:
        return

    if not IS_ONLINE:
        seen = tl.maximum(end - first, 0)
        is_good = is_exact(of_keys, sums, sink, peak, seen, LEAST, LEAST_EACH, MOST) & is_finite
        is_alive = (seen > 0) | (sink > float("-inf"))
        is_bad = row_inside & is_alive & (is_good == 0)
        # A row of no weight may see no key, and has been computed then.
        if SOFTMAX == "first_tile":
            is_bad = is_bad & (sums != 0.0)
        elif MASKS_TELL:
            unseen = keeping_none(
                is_bad & is_without_keys(of_keys, sums, sink, LEAST, MOST), first_tile * BLOCK_N,
                (first_tile + tiles) * BLOCK_N, own_place, first, end, length, inputs, SCORES,
                BEFORE, AFTER, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            is_bad = is_bad & (unseen == 0)
        count = tl.sum(is_bad.to(tl.int32), 0)
        if count > 0:
            redone_peak = sink
            redone_sums = tl.where(sink == float("-inf"), 0.0, 1.0)
            redone_total = no_total(BLOCK_M, BLOCK_V, PAIRS)
            redone_peak, redone_sums, redone_total = visit_each(
                redone_peak, redone_sums, redone_total, first_tile, first_tile + tiles, 1, floor,
                query, scale, cache, place, inputs, "online", HIDES, SCORES, BEFORE, AFTER,
                HEAD_DIM, VALUE_DIM, SHARED, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_REST,
                BLOCK_V, PAGE, WEIGHTS, PAIRS, IS_AMD,
            )  # fmt: skip
            # A row of minus infinity alone has been computed: it has no weight.
            is_bad = is_bad & (redone_peak > float("-inf"))
            peak = tl.where(is_bad, redone_peak, peak)
            sums = tl.where(is_bad, redone_sums, sums)
            # Other threads may have written what stands there.
            tl.debug_barrier()
            redone_total = whole_total(redone_total, PAIRS)
            store_rows(result, 0, redone_total, redone_sums, is_bad, DEAD, VALUE_DIM)
            count = tl.sum(is_bad.to(tl.int32), 0)
            tl.atomic_add(redone, count, sem="relaxed")
        if SOFTMAX == "running":
            own_moves, has_sum = moves_of(peak, sums, base * UNIT, row_inside, UNIT)
            tl.atomic_add(moves + head, own_moves, mask=row_inside & (count > 0), sem="relaxed")
            alive = tl.sum(has_sum.to(tl.int32), 0)
            await_stores(IS_AMD, False)
            ctas = tl.num_programs(0) // heads
            settle(phi, moves, heads * GROUPS, key_head * GROUPS, alive, ctas, GROUPS)

    if lse is not None:
        lse += (batch.to(tl.int64) * heads * GROUPS + head) * rows + row
        store_logarithms(lse, peak, sums, row_inside, UNIT)
