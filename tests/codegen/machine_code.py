"""Machine code of generated GEMMs, built for devices that are not here: specs, and budgets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from overlapc.codegen import GemmSpec
from overlapc.codegen.aot import build_for
from overlapc.codegen.epilogue import Epilogue
from overlapc.codegen.function import function_of
from overlapc.codegen.tiles import spec_for
from overlapc.planning.tiles import Tile, tiles_for
from tests.codegen.machine_order import (
    amd_signal_faults,
    signal_order_faults,
)
from tests.codegen.spills import Spills, check_spills

WIDE, ROOMY = tiles_for("sm_90", "bfloat16")[:2]
TMA = GemmSpec("bfloat16", "bfloat16", **WIDE.built, loads="descriptors", flatten=True)
BF16 = replace(TMA, loads="pointers", stages=3, flatten=False)
FLOAT = GemmSpec("float32", "float32", **tiles_for("sm_80", "float32")[0].built, flatten=True)
CDNA = replace(BF16, **tiles_for("gfx942", "bfloat16")[0].built)
FP8 = replace(TMA, dtype="float8_e4m3fn", **tiles_for("sm_90", "float8_e4m3fn")[0].built)
SHARED_BYTES = {
    "sm_80": 163 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
"""Shared memory that one CTA may have, from the vendors' programming guides."""
ARCHITECTURES = tuple(SHARED_BYTES)
SLOW_PATH = {"aten.sin.default": 128, "aten.cos.default": 128}
"""Bytes of stack that the reduction of huge arguments takes: no spill."""
HARD = ("gelu", "mish", "softplus", "atan2", "log1p")


def paired(architecture: str, dtype: str, order: str, *, signals: bool) -> GemmSpec:
    """The GEMM alone, as it would be chosen there."""
    a = torch.empty(64, 128, device="meta", dtype=getattr(torch, dtype))
    out = "bfloat16" if dtype == FP8.dtype else dtype
    spec = spec_for(a, a.t(), architecture=architecture, out=out, signals=signals)
    return replace(spec, order=order)


def check(
    architecture: str, spec: GemmSpec, stack: int = 0, *, ragged: Collection[str] = ()
) -> None:
    """Raise AssertionError unless the machine code keeps its budgets, and the order of signals.

    Elements of two bytes that are loaded alone are less than an asynchronous copy moves.
    """
    binary = build_for(spec, architecture, ragged=ragged)
    check_spills(binary, Spills(stack, 1.0 if stack else 0.0))
    assert binary.shared_bytes <= SHARED_BYTES[architecture]
    assert 32 < binary.registers <= (512 if architecture.startswith("gfx") else 255)
    assert matrix_instruction(architecture, spec) in binary.assembly
    loads = loading_instruction(architecture, spec)
    scattered = spec.loads == "pointers" and bool({*ragged} - {"N"}) and spec.dtype != "float32"
    assert scattered or loads in binary.assembly, f"operands are not loaded by {loads}"
    if architecture.startswith("sm_"):
        # Matrix units that work on by themselves are a step behind operands that are.
        ends = 2 if "tcgen05.mma" in binary.assembly and not scattered else 1
        faults = signal_order_faults(binary.assembly, spec.signals, late=spec.flatten, ends=ends)
        assert faults == []
    else:
        assert amd_signal_faults(binary.assembly, spec.signals) == []


def matrix_instruction(architecture: str, spec: GemmSpec) -> str:
    """What the product must be made of: losing it costs a factor, silently."""
    if spec.dtype == "float32" and spec.precision == "ieee":
        return "v_mfma_f32" if architecture.startswith("gfx") else "fma.rn.f32"
    return {
        "sm_80": "mma.sync",
        "sm_89": "mma.sync",
        "sm_90": "wgmma.mma_async",
        "sm_100": "tcgen05.mma",
        "sm_120": "mma.sync",
        "gfx942": "v_mfma_f32",
    }[architecture]


def loading_instruction(architecture: str, spec: GemmSpec) -> str:
    """How operands must reach shared memory, where the hardware has a way beside registers."""
    if architecture.startswith("gfx") or "strided" in (spec.a, spec.b):
        return ""
    if spec.loads == "descriptors":
        return "cp.async.bulk.tensor"
    return "cp.async.c"


def on_device(chain: Epilogue, dtype: str, architecture: str, tile: Tile | None = None) -> GemmSpec:
    """The spec that a chain would get there."""
    a = torch.empty(64, 128, device="meta", dtype=getattr(torch, dtype))
    b = torch.empty(64, 128, device="meta", dtype=a.dtype).t()
    out = function_of(chain, dtype).values[-1].dtype
    lowered: Any = SimpleNamespace(epilogue=chain, dtype=out, fast=False)
    return spec_for(a, b, architecture=architecture, lowered=lowered, tile=tile)
