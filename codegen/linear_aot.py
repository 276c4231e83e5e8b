"""Machine code of a linear layer's kernel for a device that need not be here."""

from __future__ import annotations

from typing import Any

from overlapc.codegen.aot import DIVISIBLE, TRITON_NAMES, Binary, compile_kernel, input_parts
from overlapc.codegen.linear_kernel import build_linear
from overlapc.codegen.linear_spec import MOST_WEIGHTS, LinearSpec

UNIT_STRIDES = {
    "col": ("stride_wk", "stride_ok"),
    "row": ("stride_wn", "stride_on"),
    "strided": (),
}
"""Strides that are one, by the layout of a weight."""
VARYING = ("M", "inputs")


def build_linear_for(spec: LinearSpec, architecture: str, *, aligned: bool = True) -> Binary:
    """Build ``spec`` for ``sm_90``, ``gfx942`` and the like; needs no GPU and no toolkit.

    ``aligned`` says what Triton finds out at a launch: that pointers are multiples of 16 bytes, and
    n, k and strides of 16 elements. KernelError where Triton runs as an interpreter.
    """
    module = build_linear(spec).module
    names = list(module.KERNEL.arg_names)
    constants: dict[Any, Any] = dict(module.CONSTANTS)
    constants |= dict.fromkeys(("stride_xk", *UNIT_STRIDES[spec.weight]), 1)
    if spec.weights < MOST_WEIGHTS:
        constants |= {"other": None, "stride_ok": 0, "stride_on": 0}
    if spec.splits == 1:
        constants |= {"parts": None, "arrivals": None}
    weight = f"*{TRITON_NAMES[spec.held or spec.dtype]}"
    types = {"x": f"*{TRITON_NAMES[spec.dtype]}", "w": weight, "other": weight}
    types |= {"c": f"*{TRITON_NAMES[spec.out]}", "parts": "*fp32", "arrivals": "*i32"}
    signature: dict[str, Any] = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in names
    }
    at = names.index("inputs")
    signature["inputs"], strides = input_parts(spec.chain.inputs, at)
    constants |= strides
    divisible = {}
    if aligned:
        free = [name for name in names if name not in (*constants, *VARYING)]
        paths: list[tuple[int, ...]] = [(names.index(name),) for name in free]
        parts = enumerate(signature["inputs"])
        paths += [(at, part) for part, kind in parts if kind != "constexpr"]
        divisible = dict.fromkeys(paths, DIVISIBLE)
    return compile_kernel(
        module.KERNEL, signature, constants, divisible, architecture, module.OPTIONS
    )
