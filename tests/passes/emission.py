"""The code that Inductor writes, without building or running it: what it calls, in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.graph import GraphLowering

SINKING = {
    "reorder_for_compute_comm_overlap": True,
    "reorder_for_compute_comm_overlap_passes": [
        "reorder_communication_preserving_peak_memory",
        "sink_waits_iterative",
        "reorder_communication_preserving_peak_memory",
    ],
}
"""Inductor's configuration under which it moves collectives and waits by itself."""

_OURS = r"(?:ops\.overlapc\.|extern_kernels\.overlapc_)(\w+?)(?:\.default)?\("
"""An op of ours, as torch's dispatcher is asked for it, and as the function itself."""
_CALL = re.compile(
    rf"\b(?:_c10d_functional\.(\w+)\.default\(|{_OURS}|(?:extern_kernels|mkldnn)\.\w*?(mm)\()"
)


class Generated(Exception):
    """Ends a compilation when its code is written."""


def generated(compiled: Callable[..., Any], values: Sequence[Any]) -> list[str]:
    """The code of the graph that is compiled first."""
    code: list[str] = []

    def end(self: GraphLowering) -> None:
        code.append(self.codegen()[0].value)
        raise Generated

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphLowering, "compile_to_module", end)
        with pytest.raises(BackendCompilerFailed, match="Generated"):
            compiled(*values)
    return code


def leave_unbuilt(patch: pytest.MonkeyPatch) -> None:
    """Inductor's kernels do nothing, and what ran holds no values: to build one takes seconds."""
    patch.setattr(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)


def calls(code: Sequence[str]) -> list[str]:
    """Collectives, waits, GEMMs, and ops of ours as "ours", in order; comments are not code.

    What compares sizes before a collective is a "verifier".
    """
    lines = [line for line in "\n".join(code).splitlines() if not line.lstrip().startswith("#")]
    found = []
    for name, ours, gemm in _CALL.findall("\n".join(lines)):
        plain = re.sub("_(into_tensor|tensor|single)?$", "", name)
        its = "verifier" if ours == "verify_sizes" else "ours"
        found.append(its if ours else plain or gemm)
    return found


def kinds_of_ours(code: str) -> list[str]:
    """The kinds of our ops in the code, in order."""
    return re.findall(_OURS, code)
