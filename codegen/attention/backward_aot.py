"""Machine code of an attention's backward for a device that need not be here."""

from __future__ import annotations

from typing import Any

from overlapc.codegen.aot import TRITON_NAMES, Binary
from overlapc.codegen.attention.aot import LENGTHS, NEVER_ONE, build_kernel
from overlapc.codegen.attention.backward import build_backward
from overlapc.codegen.attention.backward_module import has_shares, input_of
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile

FLOATS = ("lse_gradient", "bases", "delta", "poison", "shares")
COUNTS = (
    "kept_heads", "heads", "rows", "keys", "together", "own_heads", "same_heads", "same_batches",
)  # fmt: skip


def build_backward_for(
    spec: AttentionSpec,
    part: str,
    tile: AttentionTile,
    architecture: str,
    *,
    is_looked: bool = True,
) -> Binary:
    """Build one kernel of a backward for ``sm_90``, ``gfx942`` and the like.

    ``part`` is one that ``backward_module.parts_of`` names; operands are as of ``aot.build_for``.
    ``is_looked``: masks that may hide keys are looked through before.
    """
    index = input_of(part)
    of_inputs = () if index is None else (index,)
    module = build_backward(spec, lambda spec, part: tile, of_inputs).modules[part]
    names = list(module.KERNEL.arg_names)
    pointer = f"*{TRITON_NAMES[spec.dtype]}"
    signature: dict[str, Any] = {name: pointer for name in names if name not in module.CONSTANTS}
    for name in names:
        if name in FLOATS:
            signature[name] = "*fp32"
        if name in COUNTS:
            signature[name] = "i32"
        if name.endswith("_strides"):
            signature[name] = (*("i32",) * NEVER_ONE, "constexpr")
    signature |= {"lengths": LENGTHS, "kept": "*i32"}
    if "lse" in names:
        signature["lse"] = f"*{TRITON_NAMES[spec.sums_dtype]}"
    if index is not None and spec.inputs[index].shape != "matrix":
        signature["gradient"] = "*fp32"
    is_looked = is_looked and hasattr(module, "FIND_KEPT")
    absent = {
        "lengths": spec.lengths,
        "kept": is_looked,
        "shares": has_shares(spec),
        "sinks": spec.sinks,
    }
    constants: dict[Any, Any] = {
        **module.CONSTANTS,
        **{name: None for name, is_given in absent.items() if name in names and not is_given},
        **{(names.index(name), NEVER_ONE): 1 for name in names if name.endswith("_strides")},
    }
    if "lse_gradient" in names:
        constants["lse_gradient"] = None
    return build_kernel(spec, module.KERNEL, signature, constants, architecture, module.OPTIONS)
