"""A GEMM of few rows on matrix units, whose M are the weight's columns and whose N the rows.

A matrix instruction has at least 16 of M and 8 of N: so 8 rows cost 8, and not 16 or 64.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.rows import conclude, part_of_k


@triton.jit
def products(
    x: tl.tensor, w: tl.tensor, other: tl.tensor,
    rows_left: tl.tensor, columns_left: tl.tensor, begin: tl.tensor, end: tl.tensor,
    stride_xm: tl.tensor, stride_xk: tl.tensor, stride_wk: tl.tensor, stride_wn: tl.tensor,
    stride_ok: tl.tensor, stride_on: tl.tensor,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PAIR: tl.constexpr, EVEN_K: tl.constexpr, SUM_K: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The float32 products [BLOCK_N, ROWS] of one weight, or two, over k from begin to end.

    Rows from ``rows_left`` on and columns from ``columns_left`` on are read as zero, never touched.
    """
    m = tl.arange(0, ROWS)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_offsets = k[:, None] * stride_xk + m[None, :] * stride_xm
    w_offsets = n[:, None] * stride_wn + k[None, :] * stride_wk
    x_inside = (m < rows_left)[None, :]
    w_inside = (n < columns_left)[:, None]
    x += begin.to(tl.int64) * stride_xk
    w += begin.to(tl.int64) * stride_wk
    first = tl.full((BLOCK_N, ROWS), 0.0, tl.float32)
    second = tl.full((BLOCK_N, ROWS), 0.0, tl.float32)
    o_offsets = n[:, None] * stride_on + k[None, :] * stride_ok
    if PAIR:
        other += begin.to(tl.int64) * stride_ok
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        x_mask, w_mask = x_inside, w_inside
        if not EVEN_K:
            k_inside = k < end - start
            x_mask = x_inside & k_inside[:, None]
            w_mask = w_inside & k_inside[None, :]
        x_block = tl.load(x + x_offsets, mask=x_mask, other=0.0)
        w_block = tl.load(w + w_offsets, mask=w_mask, other=0.0).to(x_block.dtype)
        first = tl.dot(w_block, x_block, first, input_precision="ieee",
                       max_num_imprecise_acc=SUM_K)  # fmt: skip
        if PAIR:
            o_block = tl.load(other + o_offsets, mask=w_mask, other=0.0).to(x_block.dtype)
            second = tl.dot(o_block, x_block, second, input_precision="ieee",
                            max_num_imprecise_acc=SUM_K)  # fmt: skip
            other += BLOCK_K * stride_ok
        x += BLOCK_K * stride_xk
        w += BLOCK_K * stride_wk
    return first, second


@triton.jit(do_not_specialize=["M"])
def flat(
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

    The grid is (tiles of BLOCK_N columns, SPLITS); M is at most ROWS and no part of the compiled
    kernel. ``parts`` and ``arrivals`` are for SPLITS above one: see ``conclude``.
    """
    column = tl.program_id(0) * BLOCK_N
    begin, end = part_of_k(K, tl.program_id(1), BLOCK_K, SPLITS)
    # Only the corner of a tile may lie 2^31 elements away; inside a tile int32 is enough.
    w += column.to(tl.int64) * stride_wn
    if PAIR:
        other += column.to(tl.int64) * stride_on
    first, second = products(
        x, w, other, M, N - column, begin, end, stride_xm, stride_xk, stride_wk, stride_wn,
        stride_ok, stride_on, ROWS, BLOCK_N, BLOCK_K, STAGES, PAIR, EVEN_K, SUM_K,
    )  # fmt: skip
    conclude(tl.trans(first), tl.trans(second), c, inputs, parts, arrivals, column, M, N,
             EPILOGUE, ROWS, BLOCK_N, SPLITS, PAIR)  # fmt: skip
