"""Code that Inductor generates calls an op of microseconds as a function.

The way through torch's dispatcher takes longer than all else that such an op adds to the library
call in it: its string alone is copied and hashed anew at every call. Inductor keeps a table of ops
that are called otherwise; on C++ wrappers, and elsewhere, the op is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._inductor.codegen.custom_extern_kernel_codegen import (
    CUSTOM_EXTERN_KERNEL_CODEGEN,
    CustomCodegen,
)
from torch._inductor.select_algorithm import extern_kernels

from overlapc.runtime import ops
from overlapc.runtime.linear import op as linear
from overlapc.runtime.spec import COLLECTIVE_OF

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((linear.NAME, linear.NAME_OF_SEVERAL), linear.run),
    **dict.fromkeys(COLLECTIVE_OF, ops.run),
}
DIRECT = {f"torch.ops.overlapc.{name}.default": function for name, function in _FUNCTIONS.items()}
"""What is called in place of an op, with its arguments, by the name that generated code has."""


def install() -> None:
    """Have generated code of this process, and what it reads from Inductor's cache, call them."""
    for op, function in DIRECT.items():
        name = f"overlapc_{op.split('.')[-2]}"
        setattr(extern_kernels, name, function)
        CUSTOM_EXTERN_KERNEL_CODEGEN[op] = CustomCodegen(python=_call_of(name))


def _call_of(name: str) -> Callable[[Any, Callable[[str], None]], None]:
    def write(node: Any, writeline: Callable[[str], None]) -> None:
        arguments = ", ".join((*node.codegen_args(), *node.codegen_kwargs()))
        writeline(f"{node.get_name()} = extern_kernels.{name}({arguments})")

    return write
