"""A persistent GEMM that finishes C band by band, and announces every tile it has stored."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.signal import announce, announce_late, await_stores, publish


@triton.jit
def tile_in_run(
    position: tl.tensor, tall: tl.tensor, tiles_n: tl.tensor, sweep: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The tile (row, column) at ``position`` of a run of ``tall`` tile rows.

    The run is visited in sweeps of ``sweep`` tile rows, each column by column, so that the tiles in
    flight share few rows of A and few columns of B.
    """
    begun = position // (sweep * tiles_n) * sweep
    height = tl.minimum(tall - begun, sweep)
    inside = position - begun * tiles_n
    return begun + inside % height, inside // height


@triton.jit
def product_by_pointers(
    a: tl.tensor, b: tl.tensor, rows_left: tl.tensor, columns_left: tl.tensor, K: tl.tensor,
    stride_am: tl.tensor, stride_ak: tl.tensor, stride_bk: tl.tensor, stride_bn: tl.tensor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, SUM_K: tl.constexpr,
    counters: tl.tensor, stored: tl.tensor, COUNTER_STRIDE: tl.constexpr, LATE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The float32 product of BLOCK_M rows from ``a`` and BLOCK_N columns from ``b``.

    Rows from ``rows_left`` on and columns from ``columns_left`` on are read as zero, never touched.
    With LATE a step of it announces the tile before, of group ``stored``.
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
        total = tl.dot(a_block, b_block, total, input_precision=PRECISION,
                       max_num_imprecise_acc=SUM_K)  # fmt: skip
        if LATE:
            announce_late(counters, stored, start, K, BLOCK_K, COUNTER_STRIDE)
        a += BLOCK_K * stride_ak
        b += BLOCK_K * stride_bk
    return total


@triton.jit
def product_by_descriptors(
    a: tl.tensor_descriptor, b: tl.tensor_descriptor,
    row: tl.tensor, column: tl.tensor, K: tl.tensor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    A_LAYOUT: tl.constexpr, B_LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, SUM_K: tl.constexpr,
    counters: tl.tensor, stored: tl.tensor, COUNTER_STRIDE: tl.constexpr, LATE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The float32 product of the tile at (row, column), its operands fetched by the TMA unit.

    The unit itself reads zeros outside A and B. A descriptor is of the operand, or of its transpose
    where the layout is ``col``. LATE is that of ``product_by_pointers``.
    """
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        a_block = a.load([row, start]) if A_LAYOUT == "row" else a.load([start, row]).T
        b_block = b.load([start, column]) if B_LAYOUT == "row" else b.load([column, start]).T
        total = tl.dot(a_block, b_block, total, input_precision=PRECISION,
                       max_num_imprecise_acc=SUM_K)  # fmt: skip
        if LATE:
            announce_late(counters, stored, start, K, BLOCK_K, COUNTER_STRIDE)
    return total


@triton.jit(do_not_specialize=["M", "num_ctas", "sweep"])
def band_gemm(
    a: tl.tensor, b: tl.tensor, c: tl.tensor, inputs: tl.tuple,
    bands: tl.tensor, counters: tl.tensor,
    M: tl.tensor, N: tl.tensor, K: tl.tensor,
    stride_am: tl.tensor, stride_ak: tl.tensor, stride_bk: tl.tensor, stride_bn: tl.tensor,
    num_ctas: tl.tensor, sweep: tl.tensor,
    EPILOGUE: tl.constexpr, LOADS: tl.constexpr, ORDER: tl.constexpr, SIGNALS: tl.constexpr,
    A_LAYOUT: tl.constexpr, B_LAYOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, SUM_K: tl.constexpr,
    COUNTER_STRIDE: tl.constexpr, LATE: tl.constexpr,
    IS_AMD: tl.constexpr, FLATTEN: tl.constexpr,
) -> None:  # fmt: skip
    """``c = EPILOGUE(a[M, K] @ b[K, N], inputs)`` on ``num_ctas`` programs.

    In ``band`` order c is contiguous [M, N], in ``packed`` order a buffer of whole tiles in the
    order in which they are begun. With SIGNALS, ``bands`` is the table of a ``Bands`` or a
    ``Packing``, and every tile adds one to its group's counter once its stores are visible on the
    device; tiles are begun in the order of the groups. With FLATTEN the loops over tiles and over k
    are one pipeline: the next tile's operands are on their way while one is stored. With LATE, of
    SIGNALS, a tile is announced while the next one is computed. M, the grid and ``sweep``, of
    `tile_in_run`, are no part of the compiled kernel: another row count or order never compiles.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.load(bands) if SIGNALS and ORDER == "band" else tl.cdiv(M, BLOCK_M)
    if FLATTEN:
        tl.assume(K > 0)  # else a second loop is made, over tiles of no k
    tiles = tiles_m * tiles_n
    stored = -1  # the group of the tile before
    for tile in tl.range(tl.program_id(0), tiles, num_ctas, flatten=FLATTEN):
        group, first, tall, source, moved, end = 0, 0, tiles_m, 0, 0, M
        if SIGNALS and ORDER == "band":
            run = bands + tl.load(bands + 1 + tile // tiles_n)
            group = tl.load(run)
            first = tl.load(run + 1)
            tall = tl.load(run + 2)
            source = tl.load(run + 3)
            moved = tl.load(run + 4)
            end = tl.load(run + 5)
        elif SIGNALS:
            group = tl.load(bands + tile)
        tile_m, tile_n = tile_in_run(tile - first * tiles_n, tall, tiles_n, sweep)
        row = source + tile_m * BLOCK_M
        column = tile_n * BLOCK_N

        if LOADS == "descriptors":
            product = product_by_descriptors(
                a, b, row, column, K, BLOCK_M, BLOCK_N, BLOCK_K, A_LAYOUT, B_LAYOUT,
                PRECISION, SUM_K, counters, stored, COUNTER_STRIDE, LATE,
            )  # fmt: skip
        else:
            # Only the corner of a tile may lie 2^31 elements away; inside a tile int32 is enough.
            product = product_by_pointers(
                a + row.to(tl.int64) * stride_am, b + column.to(tl.int64) * stride_bn,
                M - row, N - column, K, stride_am, stride_ak, stride_bk, stride_bn,
                BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION, SUM_K,
                counters, stored, COUNTER_STRIDE, LATE,
            )  # fmt: skip

        # Made from the tile, not from an offset inside it: what no tile changes would be hoisted
        # out of the loop over tiles, and held in registers while the product needs them.
        rows = row + tl.arange(0, BLOCK_M)
        columns = column + tl.arange(0, BLOCK_N)
        rows_inside = rows < end
        columns_inside = columns < N
        result = EPILOGUE(product, (rows, rows_inside, columns, columns_inside), inputs)
        if ORDER == "packed":
            corner = c + tl.cast(tile, tl.int64) * (BLOCK_M * BLOCK_N)
            places = (rows - row)[:, None] * BLOCK_N + (columns - column)[None, :]
            elements = corner + places
        else:
            elements = c + (rows + moved).to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(elements, result, mask=rows_inside[:, None] & columns_inside[None, :])
        if LATE:
            # A sum with what nobody knows before the stores: Triton makes a number that is known
            # when a tile begins, as its group is, that of the tile before in each step of one loop.
            stored = group + await_stores(IS_AMD, FLATTEN)
        elif SIGNALS:
            publish(counters, group, COUNTER_STRIDE, IS_AMD, FLATTEN)
    if LATE:  # noqa: SIM102 - known while compiling, unlike the other
        if stored >= 0:
            announce(counters, stored, COUNTER_STRIDE)
