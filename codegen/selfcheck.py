"""What a generated module does when it is run by itself: check against float64, then time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from overlapc.codegen.bands import COUNTER_STRIDE, Bands
from overlapc.codegen.builder import load
from overlapc.codegen.kernel import Kernel
from overlapc.codegen.oracle import error_over_bound, random_operand
from overlapc.codegen.spec import GemmSpec

TIMED_SIZES = (8192, 8192, 4096)
"""m, n, k that are timed; chosen large enough that a launch costs nothing beside them."""


def main(file: str) -> int:
    """Check the generated module at ``file``; returns the exit code of the process."""
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
    path = Path(file)
    module = load(path)
    kernel = Kernel(GemmSpec.parse(module.SPEC), path, module)
    where = torch.cuda.get_device_name() if on_gpu else "Triton's interpreter on the CPU"
    print(f"{kernel.spec}\non {where}")  # noqa: T201
    if not on_gpu and kernel.spec.dtype == "bfloat16":
        # The interpreter multiplies bfloat16 wrongly, and the text of the kernel is the same.
        print("bfloat16 is checked as float16")  # noqa: T201
        kernel = replace(kernel, spec=replace(kernel.spec, dtype="float16", out="float16"))
    worst = max(_check(kernel, sizes, "cuda" if on_gpu else "cpu") for sizes in _sizes(kernel.spec))
    print(f"largest error {worst:.3g} of what roundings explain")  # noqa: T201
    if on_gpu:
        _time(kernel)
    return 0 if worst <= 1 else 1


def _sizes(spec: GemmSpec) -> list[tuple[int, int, int]]:
    whole = (3 * spec.block_m, 2 * spec.block_n, 3 * spec.block_k)
    ragged = (2 * spec.block_m + 5, spec.block_n + 7, spec.block_k * 2 + (0 if spec.even_k else 3))
    return [whole, ragged]


def _check(kernel: Kernel, sizes: tuple[int, int, int], device: str) -> float:
    """The largest error over its bound; infinite where a counter or an element is missing."""
    import torch

    m, n, k = sizes
    spec = kernel.spec
    torch.manual_seed(m * n + k)
    a, b = (
        random_operand(spec.a, m, k, spec.dtype, device),
        random_operand(spec.b, k, n, spec.dtype, device),
    )
    bias = random_operand("row", 1, n, spec.dtype, device)[0] if spec.bias else None
    c = torch.full((m, n), torch.nan, dtype=getattr(torch, spec.out), device=device)
    bands = Bands.of((spec.block_m, m - spec.block_m), spec.block_m)
    counters = torch.zeros(len(bands.rows), COUNTER_STRIDE, dtype=torch.int32, device=device)
    table = torch.tensor(bands.table, dtype=torch.int32, device=device)
    kernel(a, b, c, ctas=3, bias=bias, bands=table, counters=counters)
    counted = counters[:, 0].tolist() == list(bands.targets(kernel.tiles_n(n)))
    error = error_over_bound(spec, a, b, bias, c)
    print(f"  m={m} n={n} k={k}: {error:.3g}, counters {counters[:, 0].tolist()}")  # noqa: T201
    return error if counted or not spec.signals else float("inf")


def _time(kernel: Kernel) -> None:
    import torch

    m, n, k = TIMED_SIZES
    spec = kernel.spec
    a, b = (
        random_operand(spec.a, m, k, spec.dtype, "cuda"),
        random_operand(spec.b, k, n, spec.dtype, "cuda"),
    )
    bias = random_operand("row", 1, n, spec.dtype, "cuda")[0] if spec.bias else None
    c = torch.empty(m, n, dtype=getattr(torch, spec.out), device="cuda")
    bands = Bands.of((m,), spec.block_m)
    counters = torch.zeros(1, COUNTER_STRIDE, dtype=torch.int32, device="cuda")
    table = torch.tensor(bands.table, dtype=torch.int32, device="cuda")
    ctas = torch.cuda.get_device_properties("cuda").multi_processor_count
    ours = _seconds(lambda: kernel(a, b, c, ctas=ctas, bias=bias, bands=table, counters=counters))
    library = _seconds(lambda: torch.mm(a, b) if bias is None else torch.addmm(bias, a, b))
    rate = 2e-12 * m * n * k
    print(  # noqa: T201
        f"  m={m} n={n} k={k}: {rate / ours:.0f} TFLOP/s, the library {rate / library:.0f} TFLOP/s"
    )


def _seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Median seconds of one run on the current stream."""
    import torch

    times = []
    for _ in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return sorted(times[3:])[rounds // 2]
