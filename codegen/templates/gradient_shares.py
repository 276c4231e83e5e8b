"""What a weight is to be multiplied by where the logarithm of its row's sum has lost the sum."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.head_tiles import load_tile, of_head
from overlapc.codegen.templates.hidden import flags_of
from overlapc.codegen.templates.softmax import exp_apart, in_units, or_zero, score_tile, unit_of
from overlapc.codegen.templates.visible import end_of, end_seen, first_seen, length_of, own_key

LOST = tl.constexpr(4096.0)
"""From here on a logarithm in float32 is known to 2^-12 or worse, and below -2^24 not at all: that
of a row which a finite mask leaves no key is the mask, and says nothing of how many keys there are.
"""


@triton.jit(do_not_specialize=["rows"])
def attention_gradient_shares(
    q: tl.tensor, k: tl.tensor, bases: tl.tensor, shares: tl.tensor, inputs: tl.tuple,
    lengths: tl.tuple, kept: tl.tensor, kept_heads: tl.tensor, sinks: tl.tensor,
    heads: tl.tensor, rows: tl.tensor, keys: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple,
    SCORES: tl.constexpr, SCALE: tl.constexpr, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Write ``bases`` and ``shares`` of rows of which the logarithm has lost the sum: their largest
    score, for a logarithm that is rounded up leaves weights too small for float16, and one over the
    sum of ``exp(score - base)``. Both are those of ``attention_gradient_rows``.

    One program for each block of rows of each query head of each batch. ``kept`` and ``kept_heads``
    are as of ``attention_gradient_queries``.
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    program = tl.program_id(0)
    corner = program % blocks * BLOCK_M
    head = program // blocks % heads
    batch = program // blocks // heads
    row = corner + tl.arange(0, BLOCK_M)
    inside = row < rows
    heads_rows = (batch.to(tl.int64) * heads + head) * rows
    UNIT: tl.constexpr = unit_of(SCORES, SCALE)
    base = tl.load(bases + heads_rows + row, mask=inside, other=0.0)
    is_lost = (tl.abs(base) > LOST / UNIT) & (tl.abs(base) < float("inf"))
    if tl.sum(is_lost.to(tl.int32), 0) > 0:
        q = of_head(q, q_strides, batch, head)
        k = of_head(k, k_strides, batch, head // GROUPS)
        queries = load_tile(q, corner, q_strides, inside, BLOCK_M, HEAD_DIM, BLOCK_D, True)
        length, until = length_of(lengths, batch, keys), end_of(lengths, batch, keys)
        own = own_key(row, rows, until, ALIGN)
        first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
        lowest = own_key(corner, rows, until, ALIGN)
        highest = own_key(tl.minimum(corner + BLOCK_M, rows) - 1, rows, until, ALIGN)
        begin = first_seen(lowest, BEFORE) // BLOCK_N * BLOCK_N
        stop = end_seen(highest, length, AFTER)
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        if sinks is not None:
            peak = tl.full((BLOCK_M,), 0.0, tl.float32) + in_units(tl.load(sinks + head), UNIT)
        sums = tl.where(peak == float("-inf"), 0.0, 1.0)
        flags = kept
        if kept is not None:
            flags = flags_of(kept, kept_heads, batch, head, rows, keys, BLOCK_M, BLOCK_N)
            flags += corner // BLOCK_M * tl.cdiv(keys, BLOCK_N)
        for start in tl.range(begin, stop, BLOCK_N, num_stages=1, disable_licm=True):
            is_kept = True
            if kept is not None:
                is_kept = tl.load(flags + start // BLOCK_N) > 0
            if is_kept:
                column = start + tl.arange(0, BLOCK_N)
                seen = column < length
                own_keys = load_tile(k, start, k_strides, seen, BLOCK_N, HEAD_DIM, BLOCK_D, True)
                product = tl.dot(queries, own_keys.T, input_precision=PRECISION)
                tile = (batch, head, row, inside, column, seen)
                score = score_tile(product, tile, first, end, inputs, SCORES, SCALE, BEFORE, AFTER,
                                   True)  # fmt: skip
                higher = tl.maximum(peak, tl.max(score, 1))
                near = or_zero(higher)
                sums *= exp_apart(peak, near, UNIT)
                sums += tl.sum(exp_apart(score, near[:, None], UNIT), 1)
                peak = higher
        tl.store(bases + heads_rows + row, peak, mask=is_lost)
        tl.store(shares + heads_rows + row, 1.0 / sums, mask=is_lost)
