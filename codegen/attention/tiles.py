"""How large a part of an attention one CTA computes at a time."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.planning.tiles import sm_number

LEAST_BLOCK = 16
"""The least side that Triton's dot takes on every device."""


@dataclass(frozen=True)
class AttentionTile:
    """What of a kernel suits a device."""

    block_m: int
    """Rows of queries of one CTA; a power of two, as the next one."""
    block_n: int
    """Keys of one step."""
    warps: int
    stages: int
    """Depth of the software pipeline that loads keys and values."""


def padded(dim: int) -> int:
    """The columns that a tile of ``dim`` columns takes."""
    return max(LEAST_BLOCK, 1 << (dim - 1).bit_length())


def tile_for(spec: AttentionSpec, architecture: str) -> AttentionTile:
    """A tile for ``sm_<number>`` or ``gfx<name>``: what the budgets of the tests allow.

    None was timed. Keys and values of a step stay in shared memory once for each stage.
    """
    wide = max(padded(spec.head_dim), padded(spec.value_dim))
    is_wide, is_float = wide > 128, spec.dtype == "float32"
    if architecture.startswith("gfx"):
        return AttentionTile(64 if is_wide or is_float else 128, 32 if is_wide else 64, 4, 1)
    if is_float:
        return AttentionTile(64, 16 if is_wide else 32, 4, 1 if is_wide else 2)
    if sm_number(architecture) >= 90:
        return AttentionTile(128, 64, 8, 2) if is_wide else AttentionTile(128, 128, 8, 2)
    return AttentionTile(64, 32, 4, 2) if is_wide else AttentionTile(128, 64, 8, 2)
