"""Reading what scores are made of beside queries and keys, spread over a tile of them.

``tile`` is (batch, head, rows, which of them are inside, keys, which of them are inside); outside
is zero. Batch and head are numbers, or ``[rows, 1]`` where the rows are of several.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl


@triton.jit
def _of_head(stride_b: tl.tensor, stride_h: tl.tensor, tile: tl.tuple) -> tl.tensor:
    return tile[0].to(tl.int64) * stride_b + tile[1].to(tl.int64) * stride_h


@triton.jit
def matrix(
    x: tl.tensor, stride_b: tl.tensor, stride_h: tl.tensor, stride_m: tl.tensor,
    stride_n: tl.tensor, tile: tl.tuple,
) -> tl.tensor:  # fmt: skip
    """``x[batch, head, rows, keys]``, of any strides, among them zero."""
    rows = tile[2].to(tl.int64)[:, None] * stride_m + _of_head(stride_b, stride_h, tile)
    places = rows + tile[4].to(tl.int64)[None, :] * stride_n
    return tl.load(x + places, mask=tile[3][:, None] & tile[5][None, :], other=0.0)


@triton.jit
def column(
    x: tl.tensor, stride_b: tl.tensor, stride_h: tl.tensor, stride_m: tl.tensor, tile: tl.tuple
) -> tl.tensor:
    """``x[batch, head, rows, 0]`` as ``[rows, 1]``."""
    rows = tile[2].to(tl.int64)[:, None] * stride_m + _of_head(stride_b, stride_h, tile)
    return tl.load(x + rows, mask=tile[3][:, None], other=0.0)


@triton.jit
def vector(
    x: tl.tensor, stride_b: tl.tensor, stride_h: tl.tensor, stride_n: tl.tensor, tile: tl.tuple
) -> tl.tensor:
    """``x[batch, head, 0, keys]`` as ``[1, keys]``, or ``[rows, keys]`` where heads differ."""
    places = tile[4].to(tl.int64)[None, :] * stride_n + _of_head(stride_b, stride_h, tile)
    return tl.load(x + places, mask=tile[5][None, :], other=0.0)


@triton.jit
def one(x: tl.tensor, stride_b: tl.tensor, stride_h: tl.tensor, tile: tl.tuple) -> tl.tensor:
    """``x[batch, head, 0, 0]``."""
    return tl.load(x + _of_head(stride_b, stride_h, tile))
