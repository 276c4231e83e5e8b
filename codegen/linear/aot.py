"""Machine code of a linear layer's kernel for a device that need not be here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from overlapc.codegen.aot import DIVISIBLE, TRITON_NAMES, Binary, compile_kernel, input_parts
from overlapc.codegen.linear.kernel import build_linear
from overlapc.codegen.linear.spec import LinearSpec

UNIT_STRIDES = {"col": 1, "row": 2, "strided": None}
"""Which part of what a kernel is given for a weight is a stride of one, by the weight's layout."""
VARYING = ("M", "arrivals")

Path = tuple[int, ...]


def build_linear_for(spec: LinearSpec, architecture: str, *, aligned: bool = True) -> Binary:
    """Build ``spec`` for ``sm_90``, ``gfx942`` and the like; needs no GPU and no toolkit.

    ``aligned`` says what Triton finds out at a launch: that pointers are multiples of 16 bytes, and
    n, k and strides of 16 elements. KernelError where Triton runs as an interpreter.
    """
    module = build_linear(spec).module
    names = list(module.KERNEL.arg_names)
    constants: dict[Any, Any] = {**module.CONSTANTS, "stride_xk": 1}
    constants |= {"IS_AMD": architecture.startswith("gfx")}
    if not spec.gain:
        constants |= {"gain": None}
    if spec.splits == 1:
        constants |= {"parts": None, "arrivals": None}
    types: dict[str, Any] = {"x": f"*{TRITON_NAMES[spec.dtype]}", "parts": "*fp32"}
    types |= {"gain": f"*{TRITON_NAMES[spec.gain or spec.dtype]}"}
    types |= {"arrivals": "*i32", "sizes": ("i32",) * spec.results}
    types |= {"outs": (f"*{TRITON_NAMES[spec.out]}",) * spec.results}
    types["weights"], fixed = _weights(spec, names.index("weights"))
    constants |= fixed
    at = names.index("inputs")
    each, strides = input_parts(spec.chain.inputs, at)
    types["inputs"] = (each,) * spec.results
    constants |= {
        (at, result, part): value
        for result in range(spec.results)
        for (_, part), value in strides.items()
    }
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in names
    }
    divisible = {}
    if aligned:
        free = [name for name in names if name not in (*constants, *VARYING)]
        paths = [path for name in free for path in _leaves(signature[name], (names.index(name),))]
        divisible = dict.fromkeys(paths, DIVISIBLE)
    return compile_kernel(
        module.KERNEL, signature, constants, divisible, architecture, module.OPTIONS
    )


def _weights(spec: LinearSpec, at: int) -> tuple[tuple[Any, ...], dict[Path, int]]:
    """Types of argument ``at``, and which strides in it are one."""
    types = [f"*{TRITON_NAMES[spec.held or spec.dtype]}", "i32", "i32"]
    if spec.scales:
        types += [f"*{TRITON_NAMES[spec.scales]}", "i32", "i32"]
    if spec.zeros:
        types += [f"*{TRITON_NAMES[spec.zeros]}", "i32", "i32"]
    count, unit = spec.weights * spec.results, UNIT_STRIDES[spec.weight]
    if unit is None:
        return (tuple(types),) * count, {}
    types[unit] = "constexpr"
    return (tuple(types),) * count, {(at, index, unit): 1 for index in range(count)}


def _leaves(kind: Any, path: Path) -> Iterator[Path]:
    """The places of an argument's parts that vary."""
    if isinstance(kind, tuple):
        for index, part in enumerate(kind):
            yield from _leaves(part, (*path, index))
    elif kind != "constexpr":
        yield path
