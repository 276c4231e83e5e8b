"""Machine code of an attention for a device that need not be here."""

from __future__ import annotations

from typing import Any

from overlapc.codegen.aot import DIVISIBLE, TRITON_NAMES, Binary, compile_kernel
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.scores import PARTS
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile, padded
from overlapc.codegen.attention.visibility import hides

STRIDES = ("q_strides", "k_strides", "v_strides", "out_strides")
LENGTHS = ("*i32", "constexpr")
"""One behind the other."""
NEVER_ONE = 3
"""Strides of a matrix of one head that are no constant: the fourth, of columns, is one."""


def build_for(spec: AttentionSpec, tile: AttentionTile, architecture: str) -> Binary:
    """Build an attention for ``sm_90``, ``gfx942`` and the like; needs no GPU and no toolkit.

    It is what Triton builds at a launch where pointers are multiples of 16 bytes, strides of 16
    elements, columns follow one another, and logarithms of sums are asked for. KernelError where
    Triton runs as an interpreter.
    """
    module = build_attention(spec, tile).module
    names = list(module.KERNEL.arg_names)
    pointer = f"*{TRITON_NAMES[spec.dtype]}"
    by_tma = {"k_by_tma": padded(spec.head_dim), "v_by_tma": padded(spec.value_dim)}
    signature: dict[str, Any] = {
        **dict.fromkeys(("q", "k", "v", "out"), pointer),
        "lse": f"*{TRITON_NAMES[spec.sums_dtype]}",
        "phi": "*fp32",
        "lengths": LENGTHS,
        **dict.fromkeys(("moves", "redone"), "*i64"),
        "sinks": pointer,
        "kept": "*i32",
        **{
            name: f"tensordesc<{TRITON_NAMES[spec.dtype]}[1,1,{tile.block_n},{columns}]>"
            for name, columns in by_tma.items()
        },
        **dict.fromkeys(("kept_heads", "heads", "rows", "keys", "together"), "i32"),
        **dict.fromkeys(STRIDES, (*("i32",) * NEVER_ONE, "constexpr")),
    }
    absent = {
        "lengths": spec.lengths,
        "phi": spec.takes_phi,
        "moves": spec.moves_phi,
        "sinks": spec.sinks,
        "kept": bool(hides(spec.scores)),
        "k_by_tma": tile.by_tma,
        "v_by_tma": tile.by_tma,
    }
    constants: dict[Any, Any] = {
        **module.CONSTANTS,
        **{name: None for name, is_given in absent.items() if not is_given},
        **{(names.index(name), NEVER_ONE): 1 for name in STRIDES},
    }
    return build_kernel(spec, module.KERNEL, signature, constants, architecture, module.OPTIONS)


def build_kept_for(spec: AttentionSpec, tile: AttentionTile, architecture: str) -> Binary:
    """Build what looks the masks of an attention through before it, which ``hides`` says it has;
    as ``build_for``."""
    module = build_attention(spec, tile).module
    has_floors = hasattr(module, "FIND_FLOORS")
    constants = (
        dict(module.KEPT_CONSTANTS) if has_floors else {**module.KEPT_CONSTANTS, "floors": None}
    )
    return _looking(spec, module.FIND_KEPT, constants, architecture)


def build_floors_for(spec: AttentionSpec, tile: AttentionTile, architecture: str) -> Binary:
    """Build what finds rows that masks of finite numbers leave no key, before that; as
    ``build_for``."""
    module = build_attention(spec, tile).module
    return _looking(spec, module.FIND_FLOORS, dict(module.FLOORS_CONSTANTS), architecture)


def _looking(
    spec: AttentionSpec, kernel: Any, constants: dict[Any, Any], architecture: str
) -> Binary:
    signature: dict[str, Any] = {"kept": "*i32", "lengths": LENGTHS}
    signature |= dict.fromkeys(("own_heads", "rows", "keys"), "i32") | {"floors": "*fp32"}
    if not spec.lengths:
        constants["lengths"] = None
    return build_kernel(spec, kernel, signature, constants, architecture, {})


def build_kernel(
    spec: AttentionSpec,
    kernel: Any,
    signature: dict[str, Any],
    constants: dict[Any, Any],
    architecture: str,
    options: dict[str, int],
) -> Binary:
    """Build a kernel of an attention: inputs are added to what is said of arguments."""
    names = list(kernel.arg_names)
    if spec.lengths and "lengths" in names:
        constants[names.index("lengths"), 1] = 1
    if "inputs" in names:
        parts: list[str] = []
        for item in spec.inputs:
            parts += [f"*{TRITON_NAMES[item.dtype]}", *["i32"] * (PARTS[item.shape] - 1)]
            if item.shape in ("matrix", "vector"):  # keys follow one another
                constants[names.index("inputs"), len(parts) - 1] = 1
                parts[-1] = "constexpr"
        signature["inputs"] = tuple(parts)
    signature |= {name: "constexpr" for name in names if name in constants}
    ordered = {name: signature[name] for name in names}
    paths: list[tuple[int, ...]] = [
        (names.index(name),) for name, kind in ordered.items() if str(kind).startswith("*")
    ]
    tuples = {name: kinds for name, kinds in ordered.items() if isinstance(kinds, tuple)}
    paths += [
        (names.index(name), part)
        for name, kinds in tuples.items()
        for part, kind in enumerate(kinds)
        if kind != "constexpr"
    ]
    attributes = dict.fromkeys(paths, DIVISIBLE)
    return compile_kernel(kernel, ordered, constants, attributes, architecture, options)
