"""Reading what an epilogue takes beside the product, spread over the tile.

``tile`` is (rows, which of them are inside, columns, which of them are inside); outside is zero.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl


@triton.jit
def matrix(x: tl.tensor, stride_m: tl.tensor, stride_n: tl.tensor, tile: tl.tuple) -> tl.tensor:
    """``x[rows, columns]``, of any strides."""
    places = tile[0].to(tl.int64)[:, None] * stride_m + tile[2].to(tl.int64)[None, :] * stride_n
    return tl.load(x + places, mask=tile[1][:, None] & tile[3][None, :], other=0.0)


@triton.jit
def column(x: tl.tensor, stride_m: tl.tensor, tile: tl.tuple) -> tl.tensor:
    """``x[rows, 0]`` as ``[rows, 1]``."""
    return tl.load(x + tile[0].to(tl.int64) * stride_m, mask=tile[1], other=0.0)[:, None]


@triton.jit
def vector(x: tl.tensor, stride_n: tl.tensor, tile: tl.tuple) -> tl.tensor:
    """``x[columns]`` as ``[1, columns]``."""
    return tl.load(x + tile[2].to(tl.int64) * stride_n, mask=tile[3], other=0.0)[None, :]


@triton.jit
def one(x: tl.tensor) -> tl.tensor:
    """The only element of ``x``."""
    return tl.load(x)
