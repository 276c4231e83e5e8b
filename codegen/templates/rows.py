"""What ends a linear layer of few rows: parts of a split k are added, and C is stored."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.signal import await_stores


@triton.jit
def part_of_k(
    K: tl.tensor, split: tl.tensor, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """First and end of what one of SPLITS CTAs contracts: whole steps, the last may have none."""
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS)
    begin = split * steps * BLOCK_K
    return begin, tl.minimum(begin + steps * BLOCK_K, K)


@triton.jit
def store(
    first: tl.tensor, second: tl.tensor, c: tl.tensor, inputs: tl.tuple,
    column: tl.tensor, M: tl.tensor, N: tl.tensor,
    EPILOGUE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PAIR: tl.constexpr,
) -> None:  # fmt: skip
    """Store the tile [ROWS, BLOCK_N] of C that the epilogue makes of the products."""
    rows = tl.arange(0, ROWS)
    columns = column + tl.arange(0, BLOCK_N)
    rows_inside = rows < M
    columns_inside = columns < N
    tile = (rows, rows_inside, columns, columns_inside)
    if PAIR:  # noqa: SIM108
        result = EPILOGUE(first, second, tile, inputs)
    else:
        result = EPILOGUE(first, tile, inputs)
    elements = c + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(elements, result, mask=rows_inside[:, None] & columns_inside[None, :])


@triton.jit
def conclude(
    first: tl.tensor, second: tl.tensor, squares: tl.tensor, c: tl.tensor, inputs: tl.tuple,
    parts: tl.tensor, arrivals: tl.tensor,
    column: tl.tensor, M: tl.tensor, N: tl.tensor, K: tl.tensor,
    EPILOGUE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, PAIR: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
    IS_AMD: tl.constexpr,
) -> None:  # fmt: skip
    """Store C from the products [ROWS, BLOCK_N] of this CTA's part of k.

    With NORM they are scaled by row before the epilogue, from the sums of squares: what is the
    same for all of a row may as well be multiplied after the sum over k.

    With SPLITS above one every CTA leaves its part in ``parts``; the one that arrives last adds
    them in the order of k, so that the sum never depends on who came when, and sets the counter
    of its tile back to zero for the next launch.
    """
    if SPLITS == 1:
        if NORM:
            scale = tl.rsqrt(squares / K + EPS)[:, None]
            first *= scale
            second *= scale
        store(first, second, c, inputs, column, M, N, EPILOGUE, ROWS, BLOCK_N, PAIR)
    else:
        SIZE: tl.constexpr = ROWS * BLOCK_N
        SUMS: tl.constexpr = SIZE * 2 if PAIR else SIZE
        EACH: tl.constexpr = SUMS + ROWS if NORM else SUMS
        rows = tl.arange(0, ROWS)
        tile = tl.program_id(0)
        places = tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        slots = parts + tile.to(tl.int64) * (SPLITS * EACH)
        mine = slots + tl.program_id(1) * EACH
        tl.store(mine + places, first)
        if PAIR:
            tl.store(mine + SIZE + places, second)
        if NORM:
            tl.store(mine + SUMS + rows, squares)
        await_stores(IS_AMD, False)
        before = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu")
        if before == SPLITS - 1:
            tl.debug_barrier()
            total = tl.full((ROWS, BLOCK_N), 0.0, tl.float32)
            other = tl.full((ROWS, BLOCK_N), 0.0, tl.float32)
            square = tl.full((ROWS,), 0.0, tl.float32)
            # Past the L1 cache, which knows nothing of other multiprocessors.
            for split in tl.static_range(SPLITS):
                total += tl.load(slots + split * EACH + places, cache_modifier=".cg")
                if PAIR:
                    other += tl.load(slots + split * EACH + SIZE + places, cache_modifier=".cg")
                if NORM:
                    square += tl.load(slots + split * EACH + SUMS + rows, cache_modifier=".cg")
            if NORM:
                scale = tl.rsqrt(square / K + EPS)[:, None]
                total *= scale
                other *= scale
            tl.store(arrivals + tile, 0)
            store(total, other, c, inputs, column, M, N, EPILOGUE, ROWS, BLOCK_N, PAIR)
