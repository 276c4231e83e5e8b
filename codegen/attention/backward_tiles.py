"""How large a part of an attention's backward one CTA computes at a time."""

from __future__ import annotations

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile, padded
from overlapc.planning.tiles import sm_number

NVIDIA = {
    "sm_80": {64: (64, 64, 8, 1), 128: (32, 64, 8, 1), 256: (16, 32, 8, 1)},
    "sm_90": {64: (64, 64, 8, 2), 128: (64, 64, 8, 1), 256: (32, 32, 8, 1)},
}
"""Of 16 bits, by the first architecture that takes them and the most columns of a head."""


def backward_tile_for(spec: AttentionSpec, architecture: str, part: str) -> AttentionTile:
    """A tile for ``sm_<number>`` or ``gfx<name>``; KernelError where none keeps to registers."""
    if part == "rows":
        return AttentionTile(32, 16, 4, 1)
    known = NVIDIA["sm_90" if sm_number(architecture) >= 90 else "sm_80"]
    wide = padded(max(spec.head_dim, spec.value_dim))
    return AttentionTile(*known[max(64, wide)])
