"""What every generated module does when it is run by itself: check its kernel on what is here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from overlapc.codegen.builder import load
from overlapc.codegen.interpreting import correct_interpreter

Kernel = TypeVar("Kernel")
Sizes = tuple[int, int, int]


def check_module(
    file: str,
    kernel_of: Callable[[Path, ModuleType], Kernel],
    sizes_of: Callable[[Any], Sequence[Sizes]],
    error_of: Callable[[Kernel, Sizes, str], float],
) -> tuple[Kernel, bool, bool]:
    """Check the module at ``file`` on a GPU, or in Triton's interpreter where there is none.

    ``error_of`` runs its kernel on m, n, k and a device, and gives the largest error over what
    roundings explain. The kernel, whether it is right, and whether a GPU said so.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
    path = Path(file)
    module = load(path)
    kernel: Any = kernel_of(path, module)
    where = torch.cuda.get_device_name() if on_gpu else "Triton's interpreter on the CPU"
    print(f"{kernel.spec}\non {where}")  # noqa: T201
    if not on_gpu:
        correct_interpreter()
    worst = 0.0
    for sizes in sizes_of(kernel.spec):
        torch.manual_seed(sum(sizes))
        worst = max(worst, error_of(kernel, sizes, "cuda" if on_gpu else "cpu"))
    print(f"largest error {worst:.3g} of what roundings explain")  # noqa: T201
    return kernel, worst <= 1, on_gpu
