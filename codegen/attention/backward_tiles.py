"""How large a part of an attention's backward one CTA computes at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import WIDE_KEYS, AttentionTile, check_served, columns_for
from overlapc.codegen.attention.visibility import hides
from overlapc.errors import KernelError

Table = Mapping[int, tuple[int, int, int, int]]
"""By the most columns of a head."""

NVIDIA: Mapping[str, Table] = {
    "keys": {
        64: (64, 32, 8, 1),
        128: (32, 64, 8, 1),
        WIDE_KEYS: (32, 16, 4, 1),
        256: (32, 16, 8, 1),
    },
    "queries": {64: (128, 32, 8, 1), 128: (64, 64, 8, 1), 256: (16, 32, 4, 1)},
    "input": {64: (32, 64, 8, 1), 128: (32, 64, 8, 1), 256: (16, 32, 4, 1)},
}
"""Of 16 bits, by part. Eight warps that have 16 rows each take half of the instructions a score
that they take of 64 rows, for which two make the same weights; on sm_100 as many."""
NVIDIA_PLAIN: Mapping[str, Mapping[str, Table]] = {
    "sm_90": {"queries": {64: (128, 64, 8, 2), 128: (128, 64, 8, 2)}},
}
"""Instead, by architecture, where scores are the scaled product and sequences as long as there are
keys: warps of a group have rows of their own there, and half of the instructions a score."""
NVIDIA_LIGHT: Mapping[str, Mapping[str, Table]] = {
    "sm_90": {"keys": {64: (128, 64, 8, 1), 128: (128, 64, 8, 1)}},
}
"""Likewise, where scores are the scaled product, or of at most ``LIGHT_COLUMNS`` that and one mask:
the wider units make all products. Some numbers are on the stack from one head of queries to the
next, and none in a loop over rows."""
LIGHT_COLUMNS = 64
"""Of more, a mask that is not looked through before would spill in a loop."""
NVIDIA_FLOAT: Mapping[str, Table] = {
    "keys": {64: (16, 32, 8, 1), 128: (16, 32, 8, 1)},
    "queries": {64: (16, 32, 4, 1), 128: (16, 32, 4, 1)},
    "input": {64: (16, 32, 4, 1)},
}
"""Of one loop: another, for tiles that all rows see, would spare them 4 to 8 % of the instructions,
and more numbers would be on the stack."""
AMD: Mapping[str, Table] = {
    "keys": {64: (64, 64, 4, 1), 128: (32, 64, 4, 1), 256: (32, 32, 4, 1)},
    "queries": {64: (64, 64, 4, 1), 128: (64, 64, 4, 1), 256: (32, 32, 4, 1)},
    "input": {64: (32, 64, 4, 1), 128: (32, 64, 4, 1), 256: (16, 32, 4, 1)},
}
AMD_FLOAT: Mapping[str, Table] = {
    "keys": {64: (32, 32, 4, 1), 128: (16, 32, 4, 1)},
    "queries": {64: (32, 32, 4, 1), 128: (16, 32, 4, 1)},
    "input": {64: (16, 32, 4, 1)},
}
MOST_COLUMNS = {"float32": 128, "float16": 256, "bfloat16": 256}
"""Of a head whose backward these tables know, on every device."""
MOST_INPUT_COLUMNS = {**MOST_COLUMNS, "float32": 64}
"""The same where a gradient is wanted of what scores are made of: wider ones of float32 spill."""
OF_ROWS = AttentionTile(32, 16, 4, 1)
REGISTERS = 255
"""Of a thread, on NVIDIA's devices: all that one may have. Left to itself, the assembler takes 64
to 168 for some variants of a tile, and spills."""


def backward_tile_for(spec: AttentionSpec, architecture: str, part: str) -> AttentionTile:
    """A tile for ``sm_<number>`` or ``gfx<name>``; KernelError where none is known to fit.

    The tests check that its machine code keeps within shared memory, and within registers but for
    sixteen numbers of a thread, of which loops move few. None was timed.
    """
    check_served(spec, architecture)
    if part == "rows":
        return OF_ROWS
    part = "queries" if part == "shares" else part.partition(" ")[0]
    is_float = spec.dtype == "float32"
    is_amd = architecture.startswith("gfx")
    one_loop = is_float and not is_amd
    if is_amd:
        known = (AMD_FLOAT if is_float else AMD)[part]
    elif is_float:
        known = NVIDIA_FLOAT[part]
    else:
        known = NVIDIA[part]
        if _is_light(spec):
            known = {**known, **NVIDIA_LIGHT.get(architecture, {}).get(part, {})}
        if spec.scores is None and not spec.lengths:
            known = {**known, **NVIDIA_PLAIN.get(architecture, {}).get(part, {})}
    columns = columns_for(spec, known)
    if columns is None:
        wide = max(spec.head_dim, spec.value_dim)
        raise KernelError(
            f"Backward of heads of {wide} columns of {spec.dtype} do not fit {architecture}.",
            where=str(spec),
            remedy="let torch compute the gradients, or use a dtype of 16 bits",
        )
    registers = 0 if is_amd else REGISTERS
    return replace(AttentionTile(*known[columns]), registers=registers, one_loop=one_loop)


def _is_light(spec: AttentionSpec) -> bool:
    """Whether scores are the scaled product, or of few columns that and one mask."""
    if spec.scores is None:
        return True
    is_mask = hides(spec.scores) != "" and len(spec.scores.calls) == 2
    return is_mask and max(spec.head_dim, spec.value_dim) <= LIGHT_COLUMNS
