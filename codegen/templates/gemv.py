"""A linear layer of one or two rows on the ordinary cores: the weight is read once, as it lies."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.rows import conclude, part_of_k


@triton.jit
def dots(
    x: tl.tensor, w: tl.tensor, rows_left: tl.tensor, columns_left: tl.tensor,
    begin: tl.tensor, end: tl.tensor,
    stride_xm: tl.tensor, stride_xk: tl.tensor, stride_wk: tl.tensor, stride_wn: tl.tensor,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The float32 products [ROWS, BLOCK_N] of one or two rows and a weight, k from begin to end."""
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    offsets = n[:, None] * stride_wn + k[None, :] * stride_wk
    inside = (n < columns_left)[:, None]
    x += begin.to(tl.int64) * stride_xk
    w += begin.to(tl.int64) * stride_wk
    # Kept apart along k until the end: lanes add to each other once, and not at every step.
    first = tl.full((BLOCK_N, BLOCK_K), 0.0, tl.float32)
    second = tl.full((BLOCK_N, BLOCK_K), 0.0, tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        k_inside = k < end - start
        mask = inside
        if not EVEN_K:
            mask = inside & k_inside[None, :]
        block = tl.load(w + offsets, mask=mask, other=0.0).to(tl.float32)
        row = tl.load(x + k * stride_xk, mask=k_inside, other=0.0).to(tl.float32)
        first += block * row[None, :]
        if ROWS == 2:
            below = k_inside & (rows_left > 1)
            row = tl.load(x + stride_xm + k * stride_xk, mask=below, other=0.0).to(tl.float32)
            second += block * row[None, :]
        x += BLOCK_K * stride_xk
        w += BLOCK_K * stride_wk
    if ROWS == 2:
        result = tl.trans(tl.join(tl.sum(first, 1), tl.sum(second, 1)))
    else:
        result = tl.sum(first, 1)[None, :]
    return result


@triton.jit(do_not_specialize=["M"])
def gemv(
    x: tl.tensor, w: tl.tensor, other: tl.tensor, c: tl.tensor, inputs: tl.tuple,
    parts: tl.tensor, arrivals: tl.tensor,
    M: tl.tensor, N: tl.tensor, K: tl.tensor,
    stride_xm: tl.tensor, stride_xk: tl.tensor, stride_wk: tl.tensor, stride_wn: tl.tensor,
    stride_ok: tl.tensor, stride_on: tl.tensor,
    EPILOGUE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, PAIR: tl.constexpr, EVEN_K: tl.constexpr,
    SUM_K: tl.constexpr,
) -> None:  # fmt: skip
    """``c = EPILOGUE(x[M, K] @ w[K, N], inputs)``, with ``x @ other`` beside it where PAIR.

    Grid and arguments are those of ``flat``; ROWS is 1 or 2, and SUM_K means nothing here.
    """
    column = tl.program_id(0) * BLOCK_N
    begin, end = part_of_k(K, tl.program_id(1), BLOCK_K, SPLITS)
    # Only the corner of a tile may lie 2^31 elements away; inside a tile int32 is enough.
    first = dots(
        x, w + column.to(tl.int64) * stride_wn, M, N - column, begin, end,
        stride_xm, stride_xk, stride_wk, stride_wn, ROWS, BLOCK_N, BLOCK_K, STAGES, EVEN_K,
    )  # fmt: skip
    second = first
    if PAIR:
        second = dots(
            x, other + column.to(tl.int64) * stride_on, M, N - column, begin, end,
            stride_xm, stride_xk, stride_ok, stride_on, ROWS, BLOCK_N, BLOCK_K, STAGES, EVEN_K,
        )  # fmt: skip
    conclude(first, second, c, inputs, parts, arrivals, column, M, N,
             EPILOGUE, ROWS, BLOCK_N, SPLITS, PAIR)  # fmt: skip
