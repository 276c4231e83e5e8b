"""An op that has no gradient says so to whoever asks for one.

Left to itself torch warns, and takes what a kernel wrote for a constant: a gradient that is wrong.
"""

from __future__ import annotations

from typing import Any

import torch

from overlapc.errors import KernelError


def refuse_gradients(op: str, library: torch.library.Library, what: str, remedy: str) -> None:
    """Let a backward through ``overlapc::op`` raise KernelError; a forward never does."""

    def refuse(ctx: Any, *slopes: Any) -> None:
        raise KernelError(what, where=f"a backward through overlapc::{op}", remedy=remedy)

    torch.library.register_autograd(f"overlapc::{op}", refuse, lib=library)
