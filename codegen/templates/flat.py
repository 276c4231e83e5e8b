"""The products of few rows on matrix units, whose M are the weight's columns and whose N the rows.

A matrix instruction has at least 16 of M and 8 of N: so 8 rows cost 8, and not 16 or 64.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.weights import by_column, corner, widened


@triton.jit
def flat(
    x: tl.tensor, weight: tl.tuple, other: tl.tuple, gain: tl.tensor,
    rows_left: tl.tensor, columns_left: tl.tensor,
    column: tl.tensor, begin: tl.tensor, end: tl.tensor,
    stride_xm: tl.tensor, stride_xk: tl.tensor,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PAIR: tl.constexpr, EVEN_K: tl.constexpr, SUM_K: tl.constexpr,
    SCALED: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    NORM: tl.constexpr, GAIN: tl.constexpr, SHIFT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """The float32 products [ROWS, BLOCK_N] of one weight, or two, over k from begin to end; with
    NORM also the sum of each row's squares there.

    Where GAIN rows are multiplied by ``gain[k] + SHIFT`` first, and rounded. Rows from
    ``rows_left`` on and columns from ``columns_left`` on are read as zero, never touched.
    """
    m = tl.arange(0, ROWS)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_offsets = k[:, None] * stride_xk + m[None, :] * stride_xm
    w_offsets = n[:, None] * weight[2] + k[None, :] * weight[1]
    o_offsets = n[:, None] * other[2] + k[None, :] * other[1]
    x_inside = (m < rows_left)[None, :]
    n_inside = n < columns_left
    w_inside = n_inside[:, None]
    x += begin.to(tl.int64) * stride_xk
    w = corner(weight, column, begin)
    o = corner(other, column, begin)
    first = tl.full((BLOCK_N, ROWS), 0.0, tl.float32)
    second = tl.full((BLOCK_N, ROWS), 0.0, tl.float32)
    squares = tl.full((BLOCK_K if NORM else 1, ROWS), 0.0, tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        x_mask, w_mask = x_inside, w_inside
        if not EVEN_K:
            k_inside = k < end - start
            x_mask = x_inside & k_inside[:, None]
            w_mask = w_inside & k_inside[None, :]
        x_block = tl.load(x + x_offsets, mask=x_mask, other=0.0)
        if NORM:
            wide = x_block.to(tl.float32)
            squares += wide * wide
            if GAIN:
                gains = tl.load(gain + start + k, mask=k < end - start, other=0.0).to(tl.float32)
                gains += SHIFT
                x_block = (wide * gains[:, None]).to(x_block.dtype)
        w_block = tl.load(w + w_offsets, mask=w_mask, other=0.0)
        w_block = widened(w_block, weight, column, start, n_inside, w_mask, x_block.dtype,
                          BLOCK_N, BLOCK_K, SCALED, GROUP, ZEROS)  # fmt: skip
        first = tl.dot(w_block, x_block, first, input_precision="ieee",
                       max_num_imprecise_acc=SUM_K)  # fmt: skip
        if PAIR:
            o_block = tl.load(o + o_offsets, mask=w_mask, other=0.0)
            o_block = widened(o_block, other, column, start, n_inside, w_mask, x_block.dtype,
                              BLOCK_N, BLOCK_K, SCALED, GROUP, ZEROS)  # fmt: skip
            second = tl.dot(o_block, x_block, second, input_precision="ieee",
                            max_num_imprecise_acc=SUM_K)  # fmt: skip
            o += BLOCK_K * other[1]
        x += BLOCK_K * stride_xk
        w += BLOCK_K * weight[1]
    if SCALED and GROUP == 0:
        first *= by_column(weight, column, n, n_inside)[:, None]
        if PAIR:
            second *= by_column(other, column, n, n_inside)[:, None]
    return tl.trans(first), tl.trans(second), tl.sum(squares, 0)
