"""The flat GEMM with the rows as M: what its matrix instructions are compared with."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
import triton
import triton.language as tl


@triton.jit
def unswapped(x, w, c, K, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """``c[ROWS, BLOCK_N] = x[ROWS, K] @ w[BLOCK_N, K].T`` of one tile."""
    m = tl.arange(0, ROWS)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    total = tl.full((ROWS, BLOCK_N), 0.0, tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        x_block = tl.load(x + m[:, None] * K + (start + k)[None, :])
        w_block = tl.load(w + n[None, :] * K + (start + k)[:, None])
        total = tl.dot(x_block, w_block, total)
    tl.store(c + m[:, None] * BLOCK_N + n[None, :], total)
