"""The generated GEMM alone beside the library's: on all SMs, with some left out, with signals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.device import DTYPE, architecture, device, sms
from benchmarks.gpu.gemm.rates import alone
from benchmarks.gpu.gemm.shapes import Shape
from benchmarks.gpu.timing import cell, measure_on_device, raw
from benchmarks.measuring.deadline import Deadline
from overlapc.codegen import build
from overlapc.codegen.oracle import random_operand
from overlapc.codegen.tiles import spec_for
from overlapc.planning.kernel_costs import KernelCosts
from overlapc.planning.problem import Problem
from overlapc.planning.signaled import configurations, ranked
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, SWEEP, Tile
from overlapc.runtime.signaled.streams import resident_ctas

BANDS = 8
"""Of a GEMM that signals."""
LEFT = 16
"""SMs left to a collective, as NVLink machines need."""
LIBRARY, AGAIN, CARVED = "torch.mm", "torch.mm again", "torch.mm, SMs left"
SIGNALING = f"with {BANDS} signals, of the same without"
ANNOUNCING = f"{SIGNALING}, counters zeroed before"
"""What the kernel itself takes for it, without the kernel that zeroes its counters."""


def speed(deadline: Deadline, shape: Shape, target: Target) -> dict[str, Any]:
    """All tile configurations, and what the planner takes of them, against ``torch.mm``.

    Each with the sweep that is predicted for it.
    """
    a = random_operand("row", shape.m, shape.k, DTYPE, "cuda")
    b = random_operand("col", shape.k, shape.n, DTYPE, "cuda")
    c = torch.empty(shape.m, shape.n, dtype=a.dtype, device=a.device)
    problem = Problem(
        shape.m, shape.n, shape.k, DTYPE, "all_reduce", 2, kernel_sums=MOST_SUMS
    )  # fmt: skip
    tiles = swept_tiles(problem, target, 0)
    kernels = {
        tile.configuration: build(spec_for(a, b, architecture=architecture(), tile=tile))
        for tile in tiles
    }
    whole, fewer = (picked(problem, target, left) for left in (0, LEFT))
    full, left = sms(), resident_ctas(device(), LEFT)

    def library() -> None:
        torch.mm(a, b, out=c)

    def ours(tile: Tile, ctas: int, *, bands: int, zeroes: bool = True) -> Callable[[], object]:
        kernel = kernels[tile.configuration]
        if not bands:
            kernel = build(kernel.spec.without_signals())
        return alone(kernel, a, b, c, ctas, bands or 1, zeroes=zeroes, sweep=tile.sweep)

    runs: dict[str, Callable[[], object]] = {LIBRARY: library, AGAIN: library}
    runs |= {f"silent {tile}": ours(tile, full, bands=0) for tile in tiles}
    runs["usual sweep"] = ours(whole.configuration, full, bands=0)
    runs["signals"] = ours(whole, full, bands=BANDS)
    runs["announced"] = ours(whole, full, bands=BANDS, zeroes=False)
    runs["SMs left"] = ours(fewer, left, bands=BANDS)
    runs[CARVED] = carved_out(library, LEFT)
    samples = measure_on_device(runs, deadline, seed=shape.m + shape.k)
    best = min(tiles, key=lambda tile: samples.median(f"silent {tile}"))
    ready = KernelCosts(problem, replace(target, communication_sms=0), whole).ready(shape.m)
    return {
        "row": str(shape),
        "TFLOP/s of torch.mm": problem.flops / samples.median(LIBRARY) / 1e12,
        "tile": str(whole),
        "of torch.mm": cell(samples.ratio(LIBRARY, f"silent {whole}")),
        "of torch.mm, best tile": cell(samples.ratio(LIBRARY, f"silent {best}")),
        "best tile": str(best),
        f"of the same in sweeps of {SWEEP}": cell(samples.ratio("usual sweep", f"silent {whole}")),
        f"of torch.mm, {LEFT} SMs left to both": cell(samples.ratio(CARVED, "SMs left")),
        f"of torch.mm on all SMs, {LEFT} left": cell(samples.ratio(LIBRARY, "SMs left")),
        SIGNALING: cell(samples.ratio(f"silent {whole}", "signals")),
        ANNOUNCING: cell(samples.ratio(f"silent {whole}", "announced")),
        "torch.mm again": cell(samples.ratio(LIBRARY, AGAIN)),
        "predicted over measured": ready / samples.median(f"silent {whole}"),
    } | raw(samples)


def picked(problem: Problem, target: Target, left: int) -> Tile:
    """The tile that is predicted to be quickest with so many SMs left out, and its sweep."""
    beside = replace(target, communication_sms=left)
    return min(
        swept_tiles(problem, target, left),
        key=lambda tile: KernelCosts(problem, beside, tile).ready(problem.m),
    )


def swept_tiles(problem: Problem, target: Target, left: int) -> list[Tile]:
    """Every configuration with the sweep that is predicted for one group, so many SMs left out."""
    beside = replace(target, communication_sms=left)
    kernels = (KernelCosts(problem, beside, tile) for tile in configurations(problem, target))
    return [ranked(kernel.swept, [problem.m])[0].tiling for kernel in kernels]


def carved_out(run: Callable[[], object], left: int) -> Callable[[], object]:
    """The run with the library told to leave SMs out, by a private setting of torch.

    torch tells cuBLASLt, and cuBLAS, which it takes for products by itself, nothing: so this run is
    by cuBLASLt. Where a release lacks the setting, it is on all SMs, and the row shows no
    difference.
    """
    carve = getattr(torch._C, "_set_sm_carveout_experimental", lambda left: None)
    prefer = torch.backends.cuda.preferred_blas_library

    def carved() -> None:
        usual = prefer()
        prefer("cublaslt")
        carve(left)
        try:
            run()
        finally:
            carve(None)
            prefer(usual)

    return carved
