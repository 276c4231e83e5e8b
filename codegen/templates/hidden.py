"""Which tiles of keys masks hide from every row of a block: reads masks, and neither keys nor
values.

Scores at a product of zero tell, for those programs that ``visibility.hides`` names. A row's
``floor`` is the number at or below which a score is hidden from it. Minus infinity always is; what
is ``HIDDEN`` or less is where the row keeps a key above ``KEPT`` elsewhere, beside which its weight
is zero. A row that keeps none has the mean of the values that finite masks were added to.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.masks_tell import scores_of_nothing
from overlapc.codegen.templates.visible import end_of, end_seen, first_seen, length_of, own_key

HIDDEN = tl.constexpr(-1e9)
"""Of weaker fills graphs say that they might be scores."""
KEPT = tl.constexpr(-0.5e9)
"""Products between them would have to differ by 5e8 for a weight of what is hidden."""
WORD = tl.constexpr(31)
"""Tiles of which one number of 32 bits says whether they are kept, and is not below zero."""


@triton.jit
def floors_of(
    near: tl.tensor, second: tl.tensor, begin: tl.tensor, tiles: tl.tensor, place: tl.tuple,
    first: tl.tensor, end: tl.tensor, length: tl.tensor, inputs: tl.tuple, SCORES: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, HIDES: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The floor of each row by its keys in ``tiles`` tiles from ``begin`` on, ``[BLOCK_M]``.

    Until each row has shown a kept key, tile ``near`` of these is looked through, then ``second``,
    and then in steps of the golden section, so that a run of kept tiles is met after about as many
    trips as runs of its size make up all. A row that keeps none costs each tile once, and
    ``second`` twice.
    """
    waits = place[3]
    if HIDES == "finite":
        # Steps of an odd number pass by each number below a power of two before they come back.
        around = 1 << highest_of(2 * tl.maximum(tiles, 1) - 1)
        step = (around.to(tl.float32) * 0.618034).to(tl.int32) | 1
        trips = tl.where(tiles > 1, around + 1, tiles)
        next_tile = near
        trip = 0
        while (trip < trips) & (tl.sum(waits.to(tl.int32), 0) > 0):
            tile = tl.where(trip == 1, second, next_tile)
            next_tile = tl.where(trip == 1, next_tile, (next_tile + step) & (around - 1))
            # Of what is beyond the last tile nothing is loaded.
            start = tl.where(tile < tiles, (begin + tile) * BLOCK_N, length)
            score = scores_of_nothing(
                start, place, first, end, length, inputs, SCORES, BEFORE, AFTER, BLOCK_M, BLOCK_N
            )
            waits = waits & (tl.max((score > KEPT).to(tl.int32), 1) == 0)
            trip += 1
    return tl.where(waits, float("-inf"), HIDDEN if HIDES == "finite" else float("-inf"))


@triton.jit
def kept_tiles(
    begin: tl.tensor, stop: tl.tensor, step: tl.tensor, floor: tl.tensor, place: tl.tuple,
    first: tl.tensor, end: tl.tensor, length: tl.tensor, inputs: tl.tuple,
    SCORES: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Bit i is set where some row is not kept from tile ``begin + i * step``, of ``WORD`` tiles
    before tile ``stop``."""
    found = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    count = tl.minimum(tl.cdiv(stop - begin, step), WORD)
    # Nothing is added up between threads before the end: loads need not wait for one another, where
    # registers hold the places of several.
    TOGETHER: tl.constexpr = 4 if BLOCK_M * BLOCK_N <= 1024 else 1
    for index in tl.range(0, count, loop_unroll_factor=TOGETHER):
        score = scores_of_nothing(
            (begin + index * step) * BLOCK_N, place, first, end, length, inputs, SCORES, BEFORE,
            AFTER, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        is_kept = ((score <= floor[:, None]) == 0) & place[3][:, None]
        found = found | (is_kept.to(tl.int32) << index)
    return tl.reduce_or(found, None)


@triton.jit
def count_of(bits: tl.tensor) -> tl.tensor:
    """How many are set."""
    return tl.sum((bits >> tl.arange(0, 32)) & 1, 0)


@triton.jit
def lowest_of(bits: tl.tensor) -> tl.tensor:
    """The place of the lowest one that is set."""
    return highest_of(bits & -bits)


@triton.jit
def highest_of(bits: tl.tensor) -> tl.tensor:
    """The place of the highest one that is set, or one more where it takes more than 24 to write
    ``bits``: the exponent of what it is as a number."""
    return (bits.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def flags_of(
    kept: tl.tensor, own_heads: tl.tensor, batch: tl.tensor, head: tl.tensor, rows: tl.tensor,
    keys: tl.tensor, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Where the flags of a head begin, of what ``find_kept`` wrote: [blocks of rows, tiles]."""
    place = batch.to(tl.int64) * own_heads + tl.minimum(head, own_heads - 1)
    return kept + place * tl.cdiv(rows, BLOCK_M) * tl.cdiv(keys, BLOCK_N)


@triton.jit
def kept_bits(
    flags: tl.tensor, begin: tl.tensor, stop: tl.tensor, step: tl.tensor, is_all: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Bit i is set where flag ``begin + i`` is, of ``WORD`` flags before ``stop`` that lie ``step``
    apart, or where ``is_all``; and how many are set."""
    lane = tl.arange(0, 32)
    inside = (lane < WORD) & (begin + lane < stop)
    found = tl.load(flags + (begin + lane) * step, mask=inside, other=0)
    found = tl.where(is_all, inside.to(tl.int32), found)
    return tl.sum(found << lane, 0), tl.sum(found, 0)


@triton.jit(do_not_specialize=["rows"])
def find_floors(
    floors: tl.tensor, inputs: tl.tuple, lengths: tl.tuple, own_heads: tl.tensor, rows: tl.tensor,
    keys: tl.tensor,
    SCORES: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Write the floor of each row to ``floors``, float32[batch, own_heads, rows], where masks hide
    by finite numbers; program i does so for block i of rows.

    From a row's own place on, which causal masks and windows keep.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(rows, BLOCK_M)
    unit = program // blocks
    batch = unit // own_heads
    corner = program % blocks * BLOCK_M
    row = corner + tl.arange(0, BLOCK_M)
    place = (batch, unit % own_heads, row, row < rows)
    length = length_of(lengths, batch, keys)
    sequence_end = end_of(lengths, batch, keys)
    own = own_key(row, rows, sequence_end, ALIGN)
    first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
    lowest = own_key(corner, rows, sequence_end, ALIGN)
    highest = own_key(tl.minimum(corner + BLOCK_M, rows) - 1, rows, sequence_end, ALIGN)
    begin = first_seen(lowest, BEFORE) // BLOCK_N
    tiles = tl.maximum(tl.cdiv(end_seen(highest, length, AFTER), BLOCK_N) - begin, 0)
    near = tl.minimum(tl.maximum(highest // BLOCK_N - begin, 0), tiles - 1)
    floor = floors_of(
        near, tl.maximum(near - 1, 0), begin, tiles, place, first, end, length, inputs, SCORES,
        BEFORE, AFTER, "finite", BLOCK_M, BLOCK_N,
    )  # fmt: skip
    tl.store(floors + unit.to(tl.int64) * rows + row, floor, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def find_kept(
    kept: tl.tensor, floors: tl.tensor, inputs: tl.tuple, lengths: tl.tuple, own_heads: tl.tensor,
    rows: tl.tensor, keys: tl.tensor,
    SCORES: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Write of each tile of keys whether some row of a block keeps a key of it, 1 or 0, to
    ``kept``, int32[batch, own_heads, blocks of rows, tiles]; one head where masks are the same for
    all. ``floors`` are what ``find_floors`` wrote, or None: then only minus infinity hides.

    The grid is of one dimension, for of others a device takes 65535: program i writes flag i.
    """
    program = tl.program_id(0)
    tiles = tl.cdiv(keys, BLOCK_N)
    block = program // tiles
    tile = program % tiles
    blocks = tl.cdiv(rows, BLOCK_M)
    unit = block // blocks
    batch = unit // own_heads
    row = block % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    place = (batch, unit % own_heads, row, row < rows)
    length = length_of(lengths, batch, keys)
    own = own_key(row, rows, end_of(lengths, batch, keys), ALIGN)
    first, end = first_seen(own, BEFORE), end_seen(own, length, AFTER)
    floor = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if floors is not None:
        floor = tl.load(floors + unit.to(tl.int64) * rows + row, mask=row < rows, other=0.0)
    score = scores_of_nothing(
        tile * BLOCK_N, place, first, end, length, inputs, SCORES, BEFORE, AFTER, BLOCK_M, BLOCK_N
    )
    is_kept = ((score <= floor[:, None]) == 0) & place[3][:, None]
    tl.store(kept + program, tl.max(tl.max(is_kept.to(tl.int32), 1), 0))
