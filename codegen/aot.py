"""Machine code of a spec for a device that need not be here: to inspect it, and to test budgets."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from overlapc.codegen.builder import build
from overlapc.codegen.epilogue import Input
from overlapc.codegen.function import PARTS
from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError

TRITON_NAMES = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e5m2": "fp8e5",
    "bool": "i1",
    "int8": "i8",
    "uint8": "u8",
}
DIVISIBLE = [["tt.divisibility", 16]]
VARYING = ("M", "num_ctas", "sweep")
"""Arguments that no compiled kernel depends on (``do_not_specialize`` in the template)."""


@dataclass(frozen=True)
class Binary:
    """A kernel built ahead of time."""

    assembly: str
    """PTX on NVIDIA, AMDGCN on AMD."""
    shared_bytes: int
    """Shared memory of one CTA."""
    registers: int
    """32-bit registers of one thread; on AMD, vector registers."""
    spilled_bytes: int
    """Local memory and stack of one thread (on AMD, scratch): above zero when registers spill."""
    cubin: bytes = b""
    """What the assembler of NVIDIA made of it; empty on AMD."""


def build_for(
    spec: GemmSpec, architecture: str, *, aligned: bool = True, ragged: Collection[str] = ()
) -> Binary:
    """Build ``spec`` for ``sm_90``, ``gfx942`` and the like; needs no GPU and no toolkit.

    ``aligned`` says what Triton finds out at a launch: that pointers are multiples of 16 bytes, and
    n, k and strides of 16 elements, but for the sizes and strides that ``ragged`` names as the
    kernel's arguments. KernelError where Triton runs as an interpreter.
    """
    module = build(spec).module
    names = list(module.KERNEL.arg_names)
    fixed = {**module.CONSTANTS, "IS_AMD": architecture.startswith("gfx"), "FLATTEN": spec.flatten}
    signature, constants = _signature(spec, names, fixed)
    divisible = {}
    if aligned:
        free = (name for name in names if name not in (*constants, *VARYING, *ragged, "inputs"))
        paths = [(names.index(name),) for name in free if "tensordesc" not in signature[name]]
        at = names.index("inputs")
        kinds = enumerate(signature["inputs"])
        paths += [(at, i) for i, kind in kinds if kind[0] == "*" or (kind == "i32" and not ragged)]
        divisible = dict.fromkeys(paths, DIVISIBLE)
    return compile_kernel(
        module.KERNEL, signature, constants, divisible, architecture, module.OPTIONS
    )


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, Any],
    constants: Mapping[Any, Any],
    attributes: Mapping[tuple[int, ...], Any],
    architecture: str,
    options: dict[str, Any],
) -> Binary:
    """Build any Triton function ahead of time; arguments as for ``triton.compiler.ASTSource``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(kernel, triton.JITFunction):
        raise KernelError(
            "Triton's interpreter builds no machine code.",
            where=architecture,
            remedy="build in a process that does not set TRITON_INTERPRET",
        )
    if architecture.startswith("sm_"):
        target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    else:
        target = GPUTarget("hip", architecture, 64)
    source = ASTSource(kernel, dict(signature), dict(constants), dict(attributes))
    built = triton.compile(source, target=target, options=options)
    if target.backend == "cuda":
        cubin = built.asm["cubin"]
        registers, spilled = _cubin_resources(cubin)
        return Binary(built.asm["ptx"], built.metadata.shared, registers, spilled, cubin)
    assembly = built.asm["amdgcn"]
    registers, spilled = _amdgcn_resources(assembly)
    return Binary(assembly, built.metadata.shared, registers, spilled)


def _signature(
    spec: GemmSpec, names: list[str], fixed: dict[str, Any]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    constants: dict[Any, Any] = dict(fixed)
    # What a launch would find: absent tensors, and strides of one.
    if not spec.signals:
        constants |= {"bands": None, "counters": None}
    constants |= {"row": {"stride_ak": 1}, "col": {"stride_am": 1}, "strided": {}}[spec.a]
    constants |= {"row": {"stride_bn": 1}, "col": {"stride_bk": 1}, "strided": {}}[spec.b]
    types = {"a": f"*{TRITON_NAMES[spec.dtype]}", "c": f"*{TRITON_NAMES[spec.out]}"}
    types |= {"b": types["a"], "bands": "*i32", "counters": "*i32"}
    if spec.loads == "descriptors":
        types["a"] = _descriptor(spec.dtype, spec.a, (spec.block_m, spec.block_k))
        types["b"] = _descriptor(spec.dtype, spec.b, (spec.block_k, spec.block_n))
    signature: dict[str, Any] = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in names
    }
    signature["inputs"], strides = input_parts(spec.chain.inputs, names.index("inputs"))
    return signature, constants | strides


def input_parts(
    inputs: Sequence[Input], at: int
) -> tuple[tuple[str, ...], dict[tuple[int, int], int]]:
    """Types of what a kernel is given for the epilogue's inputs, and which of it is constant.

    They are the kernel's argument number ``at``.
    """
    types: list[str] = []
    constants: dict[tuple[int, int], int] = {}
    for item in inputs:
        types += [f"*{TRITON_NAMES[item.dtype]}", *["i32"] * (PARTS[item.shape] - 1)]
        if PARTS[item.shape] > 1 and item.shape != "column":  # columns follow one another
            constants[at, len(types) - 1] = 1
            types[-1] = "constexpr"
    return tuple(types), constants


def _descriptor(dtype: str, layout: str, block: tuple[int, int]) -> str:
    rows, columns = block if layout == "row" else block[::-1]
    return f"tensordesc<{TRITON_NAMES[dtype]}[{rows},{columns}]>"


@cache
def _cuobjdump() -> str:
    from triton import knobs

    return knobs.nvidia.cuobjdump.path


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, as the assembler recorded them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_cuobjdump(), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number(r"REG:(\d+)", text), max(
        _number(r"STACK:(\d+)", text), _number(r"LOCAL:(\d+)", text)
    )


def _amdgcn_resources(assembly: str) -> tuple[int, int]:
    return _number(r"\.vgpr_count:\s*(\d+)", assembly), _number(
        r"\.private_segment_fixed_size:\s*(\d+)", assembly
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise KernelError(
            f"The resources of a kernel are not where they were: no {pattern!r}.",
            where="output of Triton's assembler",
            remedy="use a release of Triton that overlapc is tested with",
        )
    return int(found[1])
