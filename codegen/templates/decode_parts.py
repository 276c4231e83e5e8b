"""How CTAs that share a row's keys add up: each leaves its part, and one adds all of them."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.softmax import or_zero

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
def add_parts(
    peak: tl.tensor, partials: tl.tensor, parts: tl.tensor, row_inside: tl.tensor,
    IS_SCALED: tl.constexpr, TOGETHER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """(peak, sums, total) of all CTAs, added in the order of their keys, whoever adds them.

    IS_SCALED: each is relative to a peak of its own. Reads pass by the L1 cache, which may hold
    what was there before the others wrote. Those of TOGETHER parts are under way at once, for each
    is as far away as the L2 cache, and nobody works meanwhile.
    """
    m = tl.arange(0, BLOCK_M)
    v = tl.arange(0, BLOCK_V)
    STRIDE: tl.constexpr = BLOCK_M * (BLOCK_V + 2)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    if IS_SCALED:
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        for start in tl.range(0, parts, MANY):
            for index in tl.static_range(MANY):
                part = start + index
                at = partials + tl.cast(part, tl.int64) * STRIDE + BLOCK_M * (BLOCK_V + 1)
                inside = row_inside & (part < parts)
                own = tl.load(at + m, mask=inside, other=float("-inf"), cache_modifier=".cg")
                peak = tl.maximum(peak, own)
    for start in tl.range(0, parts, TOGETHER):
        # All loads come before what is done to the first: that passes through shared memory, and
        # no load is issued ahead of its barriers.
        totals = ()
        scales = ()
        all_sums = ()
        for index in tl.static_range(TOGETHER):
            part = start + index
            inside = row_inside & (part < parts)
            at = partials + tl.cast(part, tl.int64) * STRIDE
            own_total = tl.load(at + m[:, None] * BLOCK_V + v[None, :], mask=inside[:, None],
                                other=0.0, cache_modifier=".cg")  # fmt: skip
            totals += (own_total,)
            at += BLOCK_M * BLOCK_V
            own_sums = tl.load(at + m, mask=inside, other=0.0, cache_modifier=".cg")
            all_sums += (own_sums,)
            if IS_SCALED:
                at += BLOCK_M
                own = tl.load(at + m, mask=inside, other=float("-inf"), cache_modifier=".cg")
                scales += (own,)
        for index in tl.static_range(TOGETHER):
            own_total = totals[index]
            own_sums = all_sums[index]
            if IS_SCALED:
                shrunk = tl.exp2(scales[index] - or_zero(peak))
                own_sums = own_sums * shrunk
                own_total = own_total * shrunk[:, None]
            sums += own_sums
            total += own_total
    return peak, sums, total
