"""The two products of a tile of keys: with queries, and of weights with its values."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.head_tiles import load_keys


@triton.jit
def product_of(
    start: tl.tensor, inside: tl.tensor, queries: tl.tensor, k: tl.tuple,
    IS_CUT: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Products ``[rows, keys]`` of queries and the tile of keys from ``start`` on."""
    keys = load_keys(k, start, inside, BLOCK_N, HEAD_DIM, BLOCK_D, IS_CUT)
    return tl.dot(queries, keys.T, input_precision=PRECISION)


@triton.jit
def take_values(
    weights: tl.tensor, values: tl.tensor, sums: tl.tensor, total: tl.tensor,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Add weights ``[rows, keys]`` to sums, and their values to the total.

    Summed as they are rounded: what overflows or is lost shows in the sum. ``sums`` in columns (see
    ``spread_sums``) are products with ones: matrix units add what else each thread has to widen and
    add, and no warp waits for others.
    """
    if len(sums.shape) == 2:
        ones = tl.full((weights.shape[1], sums.shape[1]), 1.0, tl.float32)
        sums = tl.dot(weights, ones.to(weights.dtype), sums)
    else:
        sums += tl.sum(weights.to(tl.float32), 1)
    return sums, tl.dot(weights, values, total, input_precision=PRECISION)
