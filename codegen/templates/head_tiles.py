"""Loading and storing the matrix of one head, a tile at a time, whatever its strides."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAttributeAccessIssue=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl


@triton.jit
def load_tile(
    x: tl.tensor, start: tl.tensor, strides: tl.tuple, inside: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, CUTS_ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """ROWS rows of ``x[start:, :COLUMNS]``, with zeros up to BLOCK columns.

    ``strides`` end with those of rows and columns. With CUTS_ROWS, rows that are not ``inside`` are
    zero and never touched.
    """
    # Only the corner of a tile may lie 2^31 elements away; inside a tile int32 is enough.
    corner = x + tl.cast(start, tl.int64) * strides[2]
    columns = tl.arange(0, BLOCK)
    places = corner + tl.arange(0, ROWS)[:, None] * strides[2] + columns[None, :] * strides[3]
    if CUTS_ROWS and COLUMNS != BLOCK:
        both = inside[:, None] & (columns < COLUMNS)[None, :]
        result = tl.load(places, mask=both, other=0.0)
    elif CUTS_ROWS:
        result = tl.load(places, mask=inside[:, None], other=0.0)
    elif COLUMNS != BLOCK:
        result = tl.load(places, mask=(columns < COLUMNS)[None, :], other=0.0)
    else:
        result = tl.load(places)
    return result


@triton.jit
def store_tile(
    x: tl.tensor, start: tl.tensor, strides: tl.tuple, inside: tl.tensor, result: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Write what ``load_tile`` would read, rounded to the dtype of ``x``."""
    corner = x + tl.cast(start, tl.int64) * strides[2]
    columns = tl.arange(0, BLOCK)
    places = corner + tl.arange(0, ROWS)[:, None] * strides[2] + columns[None, :] * strides[3]
    both = inside[:, None] & (columns < COLUMNS)[None, :]
    tl.store(places, result.to(x.dtype.element_ty), mask=both)


@triton.jit
def of_head(x: tl.tensor, strides: tl.tuple, batch: tl.tensor, head: tl.tensor) -> tl.tensor:
    """Where a head's matrix begins."""
    return x + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]


@triton.jit
def load_keys(
    side: tl.tuple, start: tl.tensor, inside: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, CUTS_ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What ``load_tile`` reads of a side: of keys or values.

    ``side`` is where their head's matrix begins; strides of all; a descriptor of ``[batch, heads,
    keys, COLUMNS]``, or None; whether tiles that are cut are loaded by it as well; batch; and head.
    The TMA unit reads zeros beyond what is there, but what is not ``inside`` as it is.
    """
    if side[2] is None or (CUTS_ROWS and not side[3]):
        result = load_tile(side[0], start, side[1], inside, ROWS, COLUMNS, BLOCK, CUTS_ROWS)
    else:
        result = side[2].load([side[4], side[5], start, 0]).reshape(ROWS, BLOCK)
    return result
