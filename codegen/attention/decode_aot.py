"""Machine code of a decode kernel for a device that need not be here."""

from __future__ import annotations

from typing import Any

from overlapc.codegen.aot import DIVISIBLE, TRITON_NAMES, Binary, compile_kernel
from overlapc.codegen.attention.aot import LENGTHS
from overlapc.codegen.attention.decode import DecodeKernel
from overlapc.codegen.attention.scores import PARTS

COUNTS = ("heads", "rows", "keys", "splits")
SIDES = ("q_strides", "k_strides", "v_strides", "out_strides")


def build_decode_for(kernel: DecodeKernel, architecture: str, *, lse: bool = False) -> Binary:
    """Build for ``sm_90``, ``gfx942`` and the like, as a launch on aligned operands would be.

    Rows of queries, keys and values are contiguous, strides multiples of 16 elements. KernelError
    where Triton runs as an interpreter.
    """
    spec, cache, module = kernel.spec, kernel.cache, kernel.module
    names = list(module.KERNEL.arg_names)
    own, kept = f"*{TRITON_NAMES[spec.dtype]}", f"*{TRITON_NAMES[cache.of(spec)]}"
    if cache.comes_as_bytes(spec, architecture):
        kept = "*u8"
    given: dict[str, str] = {"q": own, "out": own, "k": kept, "v": kept}
    given |= {"partials": "*fp32", "arrived": "*i32"}
    optional = {
        "lse": (f"*{TRITON_NAMES[spec.sums_dtype]}", lse),
        "table": ("*i32", cache.page > 0),
        "k_scale": ("*fp32", cache.scales),
        "v_scale": ("*fp32", cache.scales),
        "phi": ("*fp32", spec.takes_phi),
        "moves": ("*i64", spec.moves_phi),
        "sinks": ("*fp32", spec.sinks),
        "redone": ("*i64", not spec.is_online),
    }
    given |= {name: kind for name, (kind, is_there) in optional.items() if is_there}
    constants: dict[Any, Any] = {**module.CONSTANTS, "IS_AMD": architecture.startswith("gfx")}
    constants["PAIRS"] = cache.has_pairs(spec, architecture)
    constants |= {name: None for name, (_, is_there) in optional.items() if not is_there}
    if not spec.lengths:
        constants["lengths"] = None
    if not cache.page:
        constants["table_stride"] = 0
    signature: dict[str, Any] = {
        name: "constexpr" if name in constants else given.get(name, "i32") for name in names
    }
    paths: list[tuple[int, ...]] = [
        (names.index(name),) for name, kind in given.items() if kind.startswith("*")
    ]
    if spec.lengths:
        at = names.index("lengths")
        signature["lengths"], constants[at, 1] = LENGTHS, 1
        paths.append((at, 0))
    for side in SIDES:
        at = names.index(side)
        signature[side] = ("i32", "i32", "i32", "constexpr")
        constants[at, 3] = 1
        paths += [(at, part) for part in range(3)]
    inputs: list[str] = []
    for item in spec.inputs:
        inputs += [f"*{TRITON_NAMES[item.dtype]}", *["i32"] * (PARTS[item.shape] - 1)]
    signature["inputs"] = tuple(inputs)
    return compile_kernel(
        module.KERNEL, signature, constants, dict.fromkeys(paths, DIVISIBLE), architecture,
        module.OPTIONS,
    )  # fmt: skip
