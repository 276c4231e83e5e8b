"""Machine code of a spec for a device that need not be here: to inspect it, and to test budgets."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from typing import Any

from overlapc.codegen.builder import build
from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError

TRITON_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
DIVISIBLE = [["tt.divisibility", 16]]
VARYING = ("M", "num_ctas")
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


def build_for(spec: GemmSpec, architecture: str, *, aligned: bool = True) -> Binary:
    """Build ``spec`` for ``sm_90``, ``gfx942`` and the like; needs no GPU and no toolkit.

    ``aligned`` says what Triton finds out at a launch: that pointers are multiples of 16 bytes, and
    n, k and strides of 16 elements. KernelError where Triton runs as an interpreter.
    """
    module = build(spec).module
    signature, constants = _signature(spec, module.KERNEL.arg_names, module.CONSTANTS)
    specialised = (name for name in signature if name not in constants and name not in VARYING)
    names = list(signature)
    divisible = {(names.index(name),): DIVISIBLE for name in specialised} if aligned else {}
    return compile_kernel(
        module.KERNEL, signature, constants, divisible, architecture, module.OPTIONS
    )


def compile_kernel(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    attributes: dict[tuple[int], Any],
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
    source = ASTSource(kernel, signature, constants, attributes)
    built = triton.compile(source, target=target, options=options)
    if target.backend == "cuda":
        registers, spilled = _cubin_resources(built.asm["cubin"])
        return Binary(built.asm["ptx"], built.metadata.shared, registers, spilled)
    assembly = built.asm["amdgcn"]
    registers, spilled = _amdgcn_resources(assembly)
    return Binary(assembly, built.metadata.shared, registers, spilled)


def _signature(
    spec: GemmSpec, names: list[str], fixed: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    constants = dict(fixed)
    # What a launch would find: absent tensors, and strides of one.
    if not spec.bias:
        constants["bias"] = None
    if not spec.signals:
        constants |= {"bands": None, "counters": None}
    constants |= {"row": {"stride_ak": 1}, "col": {"stride_am": 1}, "strided": {}}[spec.a]
    constants |= {"row": {"stride_bn": 1}, "col": {"stride_bk": 1}, "strided": {}}[spec.b]
    operand, out = f"*{TRITON_NAMES[spec.dtype]}", f"*{TRITON_NAMES[spec.out]}"
    pointers = {"a": operand, "b": operand, "bias": operand, "c": out}
    pointers |= {"bands": "*i32", "counters": "*i32"}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names
    }
    return signature, constants


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
