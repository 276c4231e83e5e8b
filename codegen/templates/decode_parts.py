"""How CTAs that share a row's keys add up: each leaves its part, and one adds all of them."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.softmax import (
    all_finite,
    divided,
    exp_apart,
    or_zero,
    sink_relative_to,
)

MANY = tl.constexpr(16)
"""Parts whose peaks are read together: chosen."""


@triton.jit
def store_part(
    peak: tl.tensor, sums: tl.tensor, total: tl.tensor, partials: tl.tensor, split: tl.tensor,
    row_inside: tl.tensor, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
) -> None:  # fmt: skip
    """Leave one CTA's sums in its slice of ``partials``: total, then sums, then peaks."""
    m = tl.arange(0, BLOCK_M)
    v = tl.arange(0, BLOCK_V)
    own = partials + split.to(tl.int64) * (BLOCK_M * (BLOCK_V + 2))
    tl.store(own + m[:, None] * BLOCK_V + v[None, :], total, mask=row_inside[:, None])
    tl.store(own + BLOCK_M * BLOCK_V + m, sums, mask=row_inside)
    tl.store(own + BLOCK_M * (BLOCK_V + 1) + m, peak, mask=row_inside)


@triton.jit
def add_sums(
    peak: tl.tensor, partials: tl.tensor, parts: tl.tensor, row_inside: tl.tensor,
    UNIT: tl.constexpr, IS_SCALED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """(peak, sums) of all CTAs, added in the order of their keys, whoever adds them.

    IS_SCALED: each is relative to a peak of its own. Reads pass by the L1 cache, which may hold
    what was there before the others wrote. Many are under way at once, for each is as far away as
    the L2 cache, and nobody works meanwhile.
    """
    m = tl.arange(0, BLOCK_M)
    STRIDE: tl.constexpr = BLOCK_M * (BLOCK_V + 2)
    partials += BLOCK_M * BLOCK_V
    if IS_SCALED:
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        for start in tl.range(0, parts, MANY):
            for index in tl.static_range(MANY):
                at = partials + tl.cast(start + index, tl.int64) * STRIDE
                inside = row_inside & (start + index < parts)
                peak = tl.maximum(peak, peak_at(at, m, inside, BLOCK_M))
    sums = tl.zeros((BLOCK_M,), tl.float32)
    for start in tl.range(0, parts, MANY):
        for index in tl.static_range(MANY):
            at = partials + tl.cast(start + index, tl.int64) * STRIDE
            inside = row_inside & (start + index < parts)
            own_sums = tl.load(at + m, mask=inside, other=0.0, cache_modifier=".cg")
            if IS_SCALED:
                own_peak = peak_at(at, m, inside, BLOCK_M)
                own_sums = own_sums * exp_apart(own_peak, or_zero(peak), UNIT)
            sums += own_sums
    return peak, sums


@triton.jit
def beside_sink(
    peak: tl.tensor,
    sums: tl.tensor,
    sink: tl.tensor,
    UNIT: tl.constexpr,
    IS_NEAR: tl.constexpr,
    dtype: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """(peak, sums) of keys, and of the sink as well, which is a part of one sum: that of all."""
    peak = or_zero(tl.where(peak == float("-inf"), sink, peak))
    return peak, sums + sink_relative_to(sink, peak, UNIT, IS_NEAR, dtype)


@triton.jit
def peak_at(
    sums: tl.tensor, m: tl.tensor, inside: tl.tensor, BLOCK_M: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """The peaks behind one part's sums."""
    at = sums + BLOCK_M + m
    return tl.load(at, mask=inside, other=float("-inf"), cache_modifier=".cg")


@triton.jit
def add_totals(
    result: tl.tuple, peak: tl.tensor, sums: tl.tensor, partials: tl.tensor, parts: tl.tensor,
    row_inside: tl.tensor, UNIT: tl.constexpr, IS_SCALED: tl.constexpr, DEAD: tl.constexpr,
    TOGETHER: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    VALUE_DIM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Store what all CTAs' totals give, COLUMNS at a time, and say of which rows they are finite.

    Added as ``add_sums`` does, whose peak and sums these are; TOGETHER parts are under way at once.
    """
    m = tl.arange(0, BLOCK_M)
    v = tl.arange(0, COLUMNS)
    STRIDE: tl.constexpr = BLOCK_M * (BLOCK_V + 2)
    is_finite = row_inside | (row_inside == 0)
    for corner in tl.range(0, BLOCK_V, COLUMNS):
        total = tl.zeros((BLOCK_M, COLUMNS), tl.float32)
        for start in tl.range(0, parts, TOGETHER):
            # All loads come before what is done to the first: that passes through shared memory,
            # and no load is issued ahead of its barriers.
            totals = ()
            peaks = ()
            for index in tl.static_range(TOGETHER):
                part = start + index
                inside = row_inside & (part < parts)
                at = partials + tl.cast(part, tl.int64) * STRIDE
                own_total = tl.load(at + m[:, None] * BLOCK_V + corner + v[None, :],
                                    mask=inside[:, None], other=0.0,
                                    cache_modifier=".cg")  # fmt: skip
                totals += (own_total,)
                if IS_SCALED:
                    peaks += (peak_at(at + BLOCK_M * BLOCK_V, m, inside, BLOCK_M),)
            for index in tl.static_range(TOGETHER):
                own_total = totals[index]
                if IS_SCALED:
                    own_total *= exp_apart(peaks[index], or_zero(peak), UNIT)[:, None]
                total += own_total
        is_finite = is_finite & all_finite(total)
        store_rows(result, corner, total, sums, row_inside, DEAD, VALUE_DIM)
    return is_finite


@triton.jit
def store_rows(
    result: tl.tuple, corner: tl.tensor, total: tl.tensor, sums: tl.tensor, rows: tl.tensor,
    DEAD: tl.constexpr, VALUE_DIM: tl.constexpr,
) -> None:  # fmt: skip
    """Store ``total``, columns from ``corner`` on, over sums, of ``rows``.

    ``result`` is where rows begin, the stride of columns, and scales, or None, with the place of
    the one by which all are multiplied.
    """
    lines, stride, scales, own = result
    means = divided(total, sums, DEAD)
    if scales is not None:
        means = means * tl.load(scales + own)
    column = corner + tl.arange(0, total.shape[1])
    places = lines[:, None] + column[None, :] * stride
    inside = rows[:, None] & (column < VALUE_DIM)[None, :]
    tl.store(places, means.to(lines.dtype.element_ty), mask=inside)
