"""How many rows and keys one CTA of a decode kernel holds, for each device."""

from __future__ import annotations

from dataclasses import replace

from overlapc.codegen.attention.cache import Cache, leading
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import LEAST_BLOCK, AttentionTile, check_served, padded
from overlapc.codegen.attention.visibility import hides
from overlapc.planning.attention.decode_splits import MOST_ROWS, RESIDENT
from overlapc.planning.shared_memory import shared_bytes

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
AHEAD_BYTES, MOST_BUFFERS = 64 << 10, 5
"""What is to be on its way while a CTA computes, nearly twice what hides a microsecond of an H200,
and tiles at most that it holds, for the code before a loop grows with them: nine in pages take
half a minute to build. Both chosen."""
MOST_KEYS = 64
MOST_OF_HEAVY = 32
"""Rows of float32, and of heads of more than 128 columns that are widened from float8: 64 spill, in
pages and on sm_100, and on sm_90."""
BESIDE_BYTES = 8 << 10
"""Shared memory for what passes between layouts, numbers of pages and what the driver takes;
chosen: twice what the tests build."""
REGISTERS = 255
"""Of a thread, where two CTAs of four warps have as many, or one of eight is alone. Left to itself
the assembler of NVIDIA spills a few for the sake of CTAs that find no shared memory. That of AMD
does not ask."""
OF_MANY_ROWS = {
    "sm_80": AttentionTile(32, 64, 8, 2),
    "sm_89": AttentionTile(32, 16, 8, 2, registers=REGISTERS),
}
"""Beside those of 16 rows, where heads are wider than 256 columns, and keys of 16 bits begin with
their values: what the tests build without spills."""
SPILLS_IN_PAGES = ("sm_80",)
"""Where such a cache in pages leaves them too few registers."""
TRIED = {"sm_90": AttentionTile(32, 32, 8, 3, registers=REGISTERS)}
"""Likewise, by the narrower matrix units, for warp groups take 64 rows, whose sums leave too few
registers: 160 bytes of a thread are spilled at least. To be timed, and never chosen until then."""
MOST_MASKED = 2048
"""Elements of a mask that a CTA looks through at a time."""


def decode_tiles(
    spec: AttentionSpec, cache: Cache, rows: int, architecture: str, *, with_tried: bool = False
) -> tuple[AttentionTile, ...]:
    """The tiles that may be taken for ``rows`` rows of queries: that of ``decode_tile``, and one
    that holds more rows, perhaps of ``TRIED``. KernelError as there."""
    found = (decode_tile(spec, cache, rows, architecture),)
    known = OF_MANY_ROWS | TRIED if with_tried else OF_MANY_ROWS
    many = known.get(architecture)
    is_plain = spec.scores is None and cache.shares_values and cache.of(spec) == spec.dtype
    if many is None or not is_plain or _wide(spec) <= 256:
        return found
    if cache.page and architecture in SPILLS_IN_PAGES:
        return found
    if cache.page:
        many = replace(many, stages=_with_pages(many.stages))
    return (*found, many) if rows * spec.groups > many.block_m // 2 else found


def decode_tile(spec: AttentionSpec, cache: Cache, rows: int, architecture: str) -> AttentionTile:
    """A tile for ``rows`` rows of queries on ``sm_<number>`` or ``gfx<name>``. None was timed.

    As many keys a step, up to 64, of which two would take no more than two thirds of the shared
    memory, and as many of them as it holds beside queries and weights, of two CTAs where two may
    run beside each other, until enough bytes are on their way: these are what decoding lives on,
    and where one tile is all that fits, none are while a CTA computes.
    KernelError where nothing is generated for the architecture.
    """
    check_served(spec, architecture)
    wide, rest = _wide(spec), _rest(spec)
    most_rows = MOST_ROWS if wide <= 256 else LEAST_BLOCK
    if spec.dtype == "float32" or (cache.of(spec) != spec.dtype and wide > 128):
        most_rows = min(most_rows, MOST_OF_HEAVY)
    packed = 1 << (max(rows * spec.groups, 1) - 1).bit_length()
    block_m = min(max(packed, LEAST_BLOCK), most_rows)
    # Four warps that look masks through spill, and so do eight of many rows and keys.
    hiding = bool(hides(spec.scores))
    is_light = wide + rest <= 128 and block_m == LEAST_BLOCK and not hiding
    of_key = key_bytes(spec, cache)
    budget = shared_bytes(architecture) * 2 // 3
    # Without matrix units, a product takes more registers the more keys it is of.
    block_n = LEAST_BLOCK if spec.dtype == "float32" else MOST_KEYS
    if hiding:
        block_n = min(block_n, MOST_MASKED // block_m)
    is_full = bool(_score_bytes(spec)) or block_m > LEAST_BLOCK
    if architecture.startswith("gfx") and is_full and cache.of(spec) != spec.dtype:
        block_n //= 2
    while block_n > LEAST_BLOCK and 2 * block_n * of_key > budget:
        block_n //= 2
    columns = leading(spec.head_dim) + rest + block_n
    beside = block_m * columns * ITEM_BYTES[spec.dtype] + BESIDE_BYTES
    room, of_tile = shared_bytes(architecture), block_n * of_key
    of_stage = of_tile + block_m * block_n * _score_bytes(spec)
    buffers = (room // RESIDENT - beside) // of_stage
    is_alone = block_m > LEAST_BLOCK or buffers < 2  # registers, or shared memory, are for one CTA
    if is_alone:
        buffers = (room - beside) // of_stage
    stages = 1 + min(max(buffers, 1), 1 - -AHEAD_BYTES // of_tile, MOST_BUFFERS)
    if architecture.startswith("gfx"):
        stages = 1  # there, a stage is registers
    elif cache.page:
        stages = _with_pages(stages)
    is_free = is_light or is_alone or block_n == LEAST_BLOCK or rest > 0 or wide > 256
    return AttentionTile(
        block_m, block_n, 4 if is_light else 8, stages, registers=REGISTERS if is_free else 0
    )


def key_bytes(spec: AttentionSpec, cache: Cache) -> int:
    """Of a key and its value as a CTA holds them: columns as many as a power of two."""
    dims = leading(spec.head_dim) + _rest(spec)
    dims += 0 if cache.shares_values else padded(spec.value_dim)
    return dims * ITEM_BYTES[cache.of(spec)]


def _with_pages(stages: int) -> int:
    """Triton divides them between the numbers of pages and what is loaded from there."""
    return 2 * stages - 1


def _score_bytes(spec: AttentionSpec) -> int:
    """Of what is loaded beside each score, ahead as keys are."""
    matrices = [item.dtype for item in spec.inputs if item.shape == "matrix"]
    return sum(4 if dtype == "float32" else 2 for dtype in matrices)


def _wide(spec: AttentionSpec) -> int:
    return max(padded(spec.value_dim), leading(spec.head_dim))


def _rest(spec: AttentionSpec) -> int:
    """Columns of what stands behind the leading part of a key."""
    return padded(spec.head_dim - leading(spec.head_dim)) if spec.head_dim > _wide(spec) else 0
