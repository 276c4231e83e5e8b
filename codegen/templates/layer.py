"""The launch of a linear layer of few rows: which columns of which result a CTA computes."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.rows import conclude, part_of_k


@triton.jit
def columns(
    x: tl.tensor, weight: tl.tuple, other: tl.tuple, c: tl.tensor, inputs: tl.tuple,
    gain: tl.tensor, parts: tl.tensor, arrivals: tl.tensor,
    column: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor,
    stride_xm: tl.tensor, stride_xk: tl.tensor,
    PRODUCTS: tl.constexpr, EPILOGUE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr, PAIR: tl.constexpr,
    EVEN_K: tl.constexpr, SUM_K: tl.constexpr, SCALED: tl.constexpr, GROUP: tl.constexpr,
    ZEROS: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr, SHIFT: tl.constexpr,
    EPS: tl.constexpr, IS_AMD: tl.constexpr,
) -> None:  # fmt: skip
    """Compute BLOCK_N columns of one result from ``column`` on, or this CTA's part of k of them."""
    begin, end = part_of_k(K, tl.program_id(1), BLOCK_K, SPLITS)
    first, second, squares = PRODUCTS(
        x, weight, other, gain, M, N - column, column, begin, end, stride_xm, stride_xk,
        ROWS, BLOCK_N, BLOCK_K, STAGES, PAIR, EVEN_K, SUM_K, SCALED, GROUP, ZEROS,
        NORM, GAIN, SHIFT,
    )  # fmt: skip
    conclude(first, second, squares, c, inputs, parts, arrivals, column, M, N, K,
             EPILOGUE, ROWS, BLOCK_N, SPLITS, PAIR, NORM, EPS, IS_AMD)  # fmt: skip


# Of M and where counters lie Triton would find out what changes nothing.
@triton.jit(do_not_specialize=["M"], do_not_specialize_on_alignment=["arrivals"])
def layer(
    x: tl.tensor, weights: tl.tuple, outs: tl.tuple, inputs: tl.tuple,
    gain: tl.tensor, parts: tl.tensor, arrivals: tl.tensor,
    M: tl.tensor, K: tl.tensor, sizes: tl.tuple,
    stride_xm: tl.tensor, stride_xk: tl.tensor,
    PRODUCTS: tl.constexpr, EPILOGUE: tl.constexpr, RESULTS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    PAIR: tl.constexpr, EVEN_K: tl.constexpr, SUM_K: tl.constexpr, SCALED: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr,
    SHIFT: tl.constexpr, EPS: tl.constexpr, IS_AMD: tl.constexpr,
) -> None:  # fmt: skip
    """``outs[i] = EPILOGUE(x[M, K] @ weights[i], inputs[i])`` of ``sizes[i]`` columns each; with
    PAIR one result, of both weights. With NORM rows are x over the root of the mean of their
    squares and EPS, times ``gain[K] + SHIFT`` where GAIN.

    The grid is (tiles of BLOCK_N columns of all results in turn, SPLITS); M is at most ROWS and no
    part of the compiled kernel. ``parts`` and ``arrivals`` are for SPLITS above one: see
    ``conclude``.
    """
    before = 0
    for at in tl.static_range(RESULTS):
        column = (tl.program_id(0) - before) * BLOCK_N
        if RESULTS == 1:
            columns(
                x, weights[0], weights[PAIR], outs[0], inputs[0], gain, parts, arrivals,
                column, M, sizes[0], K, stride_xm, stride_xk, PRODUCTS, EPILOGUE, ROWS, BLOCK_N,
                BLOCK_K, SPLITS, STAGES, PAIR, EVEN_K, SUM_K, SCALED, GROUP, ZEROS,
                NORM, GAIN, SHIFT, EPS, IS_AMD,
            )  # fmt: skip
        elif (column >= 0) & (column < sizes[at]):
            columns(
                x, weights[at], weights[at], outs[at], inputs[at], gain, parts, arrivals,
                column, M, sizes[at], K, stride_xm, stride_xk, PRODUCTS, EPILOGUE, ROWS, BLOCK_N,
                BLOCK_K, SPLITS, STAGES, PAIR, EVEN_K, SUM_K, SCALED, GROUP, ZEROS,
                NORM, GAIN, SHIFT, EPS, IS_AMD,
            )  # fmt: skip
        before += tl.cdiv(sizes[at], BLOCK_N)
