"""Which keys a row sees, by its place alone: a range of them. For one row or many."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl


@triton.jit
def end_of(lengths: tl.tuple, batch: tl.tensor, keys: tl.tensor) -> tl.tensor:
    """Where the sequence of a batch ends, perhaps beyond its keys; ``lengths``, with how far they
    are apart, may be None."""
    end = keys
    if lengths is not None:
        end = tl.load(lengths[0] + batch * lengths[1])
    return end


@triton.jit
def length_of(lengths: tl.tuple, batch: tl.tensor, keys: tl.tensor) -> tl.tensor:
    """How many keys there are in a batch; ``lengths`` may be None."""
    return tl.minimum(end_of(lengths, batch, keys), keys)


@triton.jit
def own_key(row: tl.tensor, rows: tl.tensor, end: tl.tensor, ALIGN: tl.constexpr) -> tl.tensor:
    """The key at the row's own place in a sequence up to ``end``, there or not; before the first
    key where rows outnumber the sequence."""
    return row + (end - rows) if ALIGN == "bottom_right" else row


@triton.jit
def first_seen(own: tl.tensor, BEFORE: tl.constexpr) -> tl.tensor:
    """The first key that a row sees."""
    return own * 0 if BEFORE is None else tl.maximum(own - BEFORE, 0)


@triton.jit
def end_seen(own: tl.tensor, length: tl.tensor, AFTER: tl.constexpr) -> tl.tensor:
    """The first key after those that a row sees; not above its first one where it sees none."""
    if AFTER is None:
        result = own * 0 + length
    else:
        result = tl.minimum(tl.maximum(own + (AFTER + 1), 0), length)
    return result


@triton.jit
def first_row_seeing(key: tl.tensor, shift: tl.tensor, AFTER: tl.constexpr) -> tl.tensor:
    """The first row that sees a key or a later one; ``shift`` is the own key of row zero."""
    return key * 0 if AFTER is None else tl.maximum(key - AFTER - shift, 0)


@triton.jit
def end_row_seeing(
    key: tl.tensor, shift: tl.tensor, rows: tl.tensor, BEFORE: tl.constexpr
) -> tl.tensor:
    """The first row after those that see a key or an earlier one."""
    if BEFORE is None:
        result = key * 0 + rows
    else:
        result = tl.minimum(tl.maximum(key + (BEFORE + 1) - shift, 0), rows)
    return result


@triton.jit
def is_seen(
    column: tl.tensor, column_inside: tl.tensor, first: tl.tensor, end: tl.tensor,
    BEFORE: tl.constexpr, AFTER: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Whether each row sees each key, ``[rows, keys]``, or ``[1, keys]`` where all see the same."""
    seen = column_inside[None, :]
    if BEFORE is not None:
        seen = seen & (column[None, :] >= first[:, None])
    if AFTER is not None:
        seen = seen & (column[None, :] < end[:, None])
    return seen
