"""How many rows and keys one CTA of a decode kernel holds, for each device."""

from __future__ import annotations

from overlapc.codegen.attention.cache import Cache, leading
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import LEAST_BLOCK, AttentionTile, check_served, padded
from overlapc.codegen.attention.visibility import hides
from overlapc.planning.attention.decode_splits import MOST_ROWS
from overlapc.planning.shared_memory import shared_bytes

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
MOST_STAGES = 4
MOST_KEYS = 64
MOST_MASKED = 2048
"""Elements of a mask that a CTA looks through at a time."""


def decode_tile(spec: AttentionSpec, cache: Cache, rows: int, architecture: str) -> AttentionTile:
    """A tile for ``rows`` rows of queries on ``sm_<number>`` or ``gfx<name>``. None was timed.

    As many keys a step, up to 64, and as many stages, up to 4, as leave a third of the shared
    memory to what Triton puts there beside them: bytes on their way are what decoding lives on.
    KernelError where nothing is generated for the architecture.
    """
    check_served(spec, architecture)
    wide = max(padded(spec.value_dim), leading(spec.head_dim))
    most_rows = MOST_ROWS if wide <= 256 else LEAST_BLOCK
    packed = 1 << (max(rows * spec.groups, 1) - 1).bit_length()
    block_m = min(max(packed, LEAST_BLOCK), most_rows)
    rest = padded(spec.head_dim - leading(spec.head_dim)) if spec.head_dim > wide else 0
    # Four warps that look masks through spill, and so do eight of many rows and keys.
    hiding = bool(hides(spec.scores))
    is_light = wide + rest <= 128 and block_m == LEAST_BLOCK and not hiding
    dims = leading(spec.head_dim) + rest + (0 if cache.shares_values else padded(spec.value_dim))
    of_key = dims * ITEM_BYTES[cache.of(spec)]
    budget = shared_bytes(architecture) * 2 // 3
    # Without matrix units, a product takes more registers the more keys it is of.
    block_n = LEAST_BLOCK if spec.dtype == "float32" else MOST_KEYS
    if hiding:
        block_n = min(block_n, MOST_MASKED // block_m)
    while block_n > LEAST_BLOCK and 2 * block_n * of_key > budget:
        block_n //= 2
    stages = min(max(budget // (block_n * of_key), 1), MOST_STAGES)
    if architecture.startswith("gfx"):
        stages = 1  # there, a stage is registers
    elif cache.page:
        # Triton divides them between the numbers of pages and what is loaded from there.
        stages = 2 * stages - 1
    return AttentionTile(block_m, block_n, 4 if is_light else 8, stages)
