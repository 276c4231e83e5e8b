"""How a linear layer reads a weight: a tuple of a pointer and strides along k and n, and where the
weight is scaled before it is multiplied the same three of its scales.

Scales are one for each column and ``GROUP`` consecutive k; GROUP 0 stands for all of k. Behind them
stand as many zero points, where those are subtracted first.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl


@triton.jit
def corner(weight: tl.tuple, column: tl.tensor, k: tl.tensor) -> tl.tensor:
    """Where ``weight[k, column]`` lies.

    Only the corner of a tile may lie 2^31 elements away; inside a tile int32 is enough.
    """
    return weight[0] + column.to(tl.int64) * weight[2] + k.to(tl.int64) * weight[1]


@triton.jit
def by_column(
    weight: tl.tuple, column: tl.tensor, n: tl.tensor, n_inside: tl.tensor
) -> tl.tensor:  # fmt: skip
    """The scale of each column, which may be applied to sums as well: float32."""
    places = weight[3] + (column + n).to(tl.int64) * weight[5]
    return tl.load(places, mask=n_inside, other=0.0).to(tl.float32)


@triton.jit
def of_groups(
    first: tl.tensor, stride_k: tl.tensor, stride_n: tl.tensor, column: tl.tensor,
    start: tl.tensor, n_inside: tl.tensor, inside: tl.tensor,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What meets a block [n, k] of the weight element by element: float32 [n, k] or [n, 1]."""
    columns = (column + tl.arange(0, BLOCK_N)).to(tl.int64) * stride_n
    if GROUP == 0:
        result = tl.load(first + columns, mask=n_inside, other=0.0)[:, None]
    elif GROUP % BLOCK_K == 0:
        # Scales are too few to lie 2^31 elements away along k.
        places = first + columns + (start // GROUP) * stride_k
        result = tl.load(places, mask=n_inside, other=0.0)[:, None]
    else:
        groups = ((start + tl.arange(0, BLOCK_K)) // GROUP).to(tl.int64) * stride_k
        places = first + columns[:, None] + groups[None, :]
        result = tl.load(places, mask=inside, other=0.0)
    return result.to(tl.float32)


@triton.jit
def widened(
    block: tl.tensor, weight: tl.tuple, column: tl.tensor, start: tl.tensor, n_inside: tl.tensor,
    inside: tl.tensor, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SCALED: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A block [n, k] from ``column`` and ``start`` on in the dtype in which it is multiplied.

    Less its zero points, and times its scales, if those change along k; rounded once, as eager
    rounds what it multiplies. Differences of integers are not rounded, others to the dtype of the
    zero points.
    """
    result = block
    if ZEROS:
        result = result.to(tl.float32) - of_groups(
            weight[6], weight[7], weight[8], column, start, n_inside, inside,
            BLOCK_N, BLOCK_K, GROUP,
        )  # fmt: skip
        if weight[6].dtype.element_ty.is_floating():
            result = result.to(weight[6].dtype.element_ty)
    if SCALED and GROUP > 0:
        result = result.to(tl.float32) * of_groups(
            weight[3], weight[4], weight[5], column, start, n_inside, inside,
            BLOCK_N, BLOCK_K, GROUP,
        )  # fmt: skip
    return result.to(dtype)
