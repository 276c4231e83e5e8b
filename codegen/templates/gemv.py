"""The products of one or two rows on the ordinary cores: the weight is read once, as it lies."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.weights import by_column, corner, widened


@triton.jit
def factors(
    pointers: tl.tensor, inside: tl.tensor, gains: tl.tensor, GAIN: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """A part of a row in float32, as it lies and as it is multiplied: by its gain, and rounded."""
    row = tl.load(pointers, mask=inside, other=0.0)
    wide = row.to(tl.float32)
    gained = wide
    if GAIN:
        gained = (wide * gains).to(row.dtype).to(tl.float32)
    return wide, gained


@triton.jit
def dots(
    x: tl.tensor, weight: tl.tuple, gain: tl.tensor, rows_left: tl.tensor, columns_left: tl.tensor,
    column: tl.tensor, begin: tl.tensor, end: tl.tensor,
    stride_xm: tl.tensor, stride_xk: tl.tensor,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    EVEN_K: tl.constexpr, SCALED: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    NORM: tl.constexpr, GAIN: tl.constexpr, SHIFT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The float32 products [ROWS, BLOCK_N] of one or two rows and a weight, k from begin to end,
    and with NORM the sum of each row's squares."""
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    offsets = n[:, None] * weight[2] + k[None, :] * weight[1]
    n_inside = n < columns_left
    inside = n_inside[:, None]
    x += begin.to(tl.int64) * stride_xk
    w = corner(weight, column, begin)
    # Kept apart along k until the end: lanes add to each other once, and not at every step.
    first = tl.full((BLOCK_N, BLOCK_K), 0.0, tl.float32)
    second = tl.full((BLOCK_N, BLOCK_K), 0.0, tl.float32)
    squares = tl.full((BLOCK_K,), 0.0, tl.float32)
    more = tl.full((BLOCK_K,), 0.0, tl.float32)
    gains = squares
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        k_inside = k < end - start
        mask = inside
        if not EVEN_K:
            mask = inside & k_inside[None, :]
        if GAIN:
            gains = tl.load(gain + start + k, mask=k_inside, other=0.0).to(tl.float32)
            gains += SHIFT
        wide, gained = factors(x + k * stride_xk, k_inside, gains, GAIN)
        block = tl.load(w + offsets, mask=mask, other=0.0)
        block = widened(block, weight, column, start, n_inside, mask, x.dtype.element_ty,
                        BLOCK_N, BLOCK_K, SCALED, GROUP, ZEROS).to(tl.float32)  # fmt: skip
        first += block * gained[None, :]
        if NORM:
            squares += wide * wide
        if ROWS == 2:
            below = k_inside & (rows_left > 1)
            wide, gained = factors(x + stride_xm + k * stride_xk, below, gains, GAIN)
            second += block * gained[None, :]
            if NORM:
                more += wide * wide
        x += BLOCK_K * stride_xk
        w += BLOCK_K * weight[1]
    if ROWS == 2:
        result = tl.trans(tl.join(tl.sum(first, 1), tl.sum(second, 1)))
        total = tl.join(tl.sum(squares, 0), tl.sum(more, 0))
    else:
        result = tl.sum(first, 1)[None, :]
        total = tl.sum(squares[None, :], 1)
    if SCALED and GROUP == 0:
        result *= by_column(weight, column, n, n_inside)[None, :]
    return result, total


@triton.jit
def gemv(
    x: tl.tensor, weight: tl.tuple, other: tl.tuple, gain: tl.tensor,
    rows_left: tl.tensor, columns_left: tl.tensor,
    column: tl.tensor, begin: tl.tensor, end: tl.tensor,
    stride_xm: tl.tensor, stride_xk: tl.tensor,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PAIR: tl.constexpr, EVEN_K: tl.constexpr, SUM_K: tl.constexpr,
    SCALED: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    NORM: tl.constexpr, GAIN: tl.constexpr, SHIFT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """What ``flat`` gives, of ROWS that are 1 or 2; SUM_K means nothing here."""
    first, squares = dots(
        x, weight, gain, rows_left, columns_left, column, begin, end, stride_xm, stride_xk,
        ROWS, BLOCK_N, BLOCK_K, STAGES, EVEN_K, SCALED, GROUP, ZEROS, NORM, GAIN, SHIFT,
    )  # fmt: skip
    second = first
    if PAIR:
        second, _ = dots(
            x, other, gain, rows_left, columns_left, column, begin, end, stride_xm, stride_xk,
            ROWS, BLOCK_N, BLOCK_K, STAGES, EVEN_K, SCALED, GROUP, ZEROS, False, GAIN, SHIFT,
        )  # fmt: skip
    return first, second, squares
