"""A persistent GEMM that finishes C band by band, and announces every tile it has stored."""

# pyright: reportGeneralTypeIssues=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.signal import publish


@triton.jit
def tile_in_band(
    position: tl.tensor, first_row: tl.tensor, rows: tl.tensor, tiles_n: tl.tensor,
    SWEEP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The tile (row, column) at ``position`` of a band of ``rows`` tile rows from ``first_row``.

    The band is visited in sweeps of SWEEP tile rows, each column by column, so that the tiles in
    flight share few rows of A and few columns of B.
    """
    sweep = position // (SWEEP * tiles_n)
    height = tl.minimum(rows - sweep * SWEEP, SWEEP)
    inside = position - sweep * SWEEP * tiles_n
    return first_row + sweep * SWEEP + inside % height, inside // height


@triton.jit
def tile_product(
    a: tl.tensor, b: tl.tensor, rows_left: tl.tensor, columns_left: tl.tensor, K: tl.tensor,
    stride_am: tl.tensor, stride_ak: tl.tensor, stride_bk: tl.tensor, stride_bn: tl.tensor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The float32 product of BLOCK_M rows from ``a`` and BLOCK_N columns from ``b``.

    Rows from ``rows_left`` on and columns from ``columns_left`` on are read as zero, never touched.
    """
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_offsets = m[:, None] * stride_am + k[None, :] * stride_ak
    b_offsets = k[:, None] * stride_bk + n[None, :] * stride_bn
    a_inside = (m < rows_left)[:, None]
    b_inside = (n < columns_left)[None, :]
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        if EVEN_K:
            a_block = tl.load(a + a_offsets, mask=a_inside, other=0.0)
            b_block = tl.load(b + b_offsets, mask=b_inside, other=0.0)
        else:
            k_inside = k < K - start
            a_block = tl.load(a + a_offsets, mask=a_inside & k_inside[None, :], other=0.0)
            b_block = tl.load(b + b_offsets, mask=b_inside & k_inside[:, None], other=0.0)
        total = tl.dot(a_block, b_block, total, input_precision=PRECISION)
        a += BLOCK_K * stride_ak
        b += BLOCK_K * stride_bk
    return total


@triton.jit(do_not_specialize=["M", "num_ctas"])
def band_gemm(
    a: tl.tensor, b: tl.tensor, bias: tl.tensor, c: tl.tensor,
    bands: tl.tensor, counters: tl.tensor,
    M: tl.tensor, N: tl.tensor, K: tl.tensor,
    stride_am: tl.tensor, stride_ak: tl.tensor, stride_bk: tl.tensor, stride_bn: tl.tensor,
    num_ctas: tl.tensor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWEEP: tl.constexpr,
    BIAS: tl.constexpr, SIGNALS: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    COUNTER_STRIDE: tl.constexpr,
) -> None:  # fmt: skip
    """``c[M, N] = a[M, K] @ b[K, N] (+ bias[N])``, c contiguous, on ``num_ctas`` programs.

    With SIGNALS, ``bands`` is ``Bands.table`` and every tile adds one to its band's counter once
    its stores are visible on the device; tiles are begun in the order of the bands. M and the grid
    are no part of the compiled kernel: a new row count never compiles.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, num_ctas):
        if SIGNALS:
            group = tl.load(bands + tile // tiles_n)
            first_row = tl.load(bands + tiles_m + group)
            rows = tl.load(bands + tiles_m + group + 1) - first_row
        else:
            group = 0
            first_row = 0
            rows = tiles_m
        tile_m, tile_n = tile_in_band(tile - first_row * tiles_n, first_row, rows, tiles_n, SWEEP)
        row = tile_m * BLOCK_M
        column = tile_n * BLOCK_N

        # Only the corner of a tile may lie 2^31 elements away; inside a tile int32 is enough.
        product = tile_product(
            a + row.to(tl.int64) * stride_am, b + column.to(tl.int64) * stride_bn,
            M - row, N - column, K, stride_am, stride_ak, stride_bk, stride_bn,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION,
        )  # fmt: skip

        # Made from the tile, not from an offset inside it: what no tile changes would be hoisted
        # out of the loop over tiles, and held in registers while the product needs them.
        rows_of_c = row + tl.arange(0, BLOCK_M)
        columns_of_c = column + tl.arange(0, BLOCK_N)
        inside = (rows_of_c < M)[:, None] & (columns_of_c < N)[None, :]
        if BIAS:
            added = tl.load(bias + columns_of_c, mask=columns_of_c < N, other=0.0)
            product += added.to(tl.float32)[None, :]
        elements = c + rows_of_c.to(tl.int64)[:, None] * N + columns_of_c[None, :]
        tl.store(elements, product.to(c.dtype.element_ty), mask=inside)
        if SIGNALS:
            publish(counters, group, COUNTER_STRIDE)
