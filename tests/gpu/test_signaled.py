"""The signaled GEMM on a real device: values, order of bands, replays, and no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from overlapc.codegen import Bands, GemmSpec, build
from overlapc.codegen.oracle import error_over_bound, random_operand
from overlapc.codegen.tiles import TILES, spec_for
from overlapc.runtime.signals import Signals
from overlapc.runtime.streams import run_signaled

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

POLLS = 20_000_000
"""Seconds of polling: a band that is late by so much never comes."""
REPLAYS = 1000
HALF = GemmSpec("bfloat16", "bfloat16", **TILES["sm_80", True])
SPECS = {
    "bfloat16": HALF,
    "float16 with bias": replace(HALF, dtype="float16", out="float16", bias=True),
    "float32": GemmSpec("float32", "float32", **TILES["sm_80", False]),
    "row-major B": replace(HALF, b="row"),
    "strided": replace(HALF, a="strided", b="strided"),
}


def operands(spec: GemmSpec, m: int, n: int, k: int):
    bias = random_operand("row", 1, n, spec.dtype, "cuda")[0] if spec.bias else None
    return (
        random_operand(spec.a, m, k, spec.dtype, "cuda"),
        random_operand(spec.b, k, n, spec.dtype, "cuda"),
        bias,
    )


def equal_bands(spec: GemmSpec, m: int, count: int) -> tuple[int, ...]:
    tiles = -(-m // spec.block_m)
    rows = [spec.block_m * (tiles // count)] * (count - 1)
    return (*rows, m - sum(rows))


def double(band: torch.Tensor) -> None:
    """An all-reduce of two equal ranks, as far as one GPU can tell."""
    band.mul_(2)


def architecture() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("sizes", [(1000, 712, 328), (2048, 1024, 512), (130, 64, 1)], ids=str)
@pytest.mark.parametrize("ctas", [3, 1000])
def test_values_and_counters(spec, sizes, ctas):
    m, n, k = sizes
    a, b, bias = operands(spec, m, n, k)
    bands = Bands.of(equal_bands(spec, m, 2), spec.block_m)
    kernel = build(spec)
    c = torch.full((m, n), torch.nan, dtype=getattr(torch, spec.out), device="cuda")
    signals = Signals.zeroed(bands, kernel.tiles_n(n), c.device)
    kernel(a, b, c, ctas=ctas, bias=bias, bands=signals.bands, counters=signals.counters)
    assert error_over_bound(spec, a, b, bias, c) <= 1
    assert signals.counters[:, 0].tolist() == list(signals.targets)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_every_band_is_whole_when_its_collective_runs(groups):
    m, n, k = 8192, 4096, 512
    a, b, _ = operands(HALF, m, n, k)
    spec = spec_for(a, b, architecture=architecture())
    seen: list[torch.Tensor] = []
    for _ in range(3):  # cold, then overlapped twice
        seen.clear()
        out = run_signaled(
            build(spec), a, b, None, equal_bands(spec, m, groups),
            lambda band: seen.append(band.clone()), sms_for_comm=8, max_polls=POLLS,
        )  # fmt: skip
        assert torch.equal(torch.cat(seen), out)
        assert error_over_bound(spec, a, b, None, out) <= 1


def test_graph_replays_do_not_hang_or_drift():
    m, n, k = 1024, 1024, 256
    a, b, _ = operands(HALF, m, n, k)
    kernel, rows = build(HALF), equal_bands(HALF, m, 4)

    def run() -> torch.Tensor:
        return run_signaled(kernel, a, b, None, rows, double, sms_for_comm=8)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(REPLAYS):
        graph.replay()
    out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert error_over_bound(HALF, a, b, None, out / 2) <= 1


def test_new_row_counts_compile_nothing():
    kernel = build(HALF)
    compiled = []
    for m in (1, 127, 128, 129, 4096):
        a, b, _ = operands(HALF, m, 512, 256)
        c = torch.empty(m, 512, dtype=torch.bfloat16, device="cuda")
        signals = Signals.zeroed(Bands.of((m,), HALF.block_m), kernel.tiles_n(512), c.device)
        compiled.append(kernel(a, b, c, ctas=m % 7 + 1, bands=signals.bands,
                               counters=signals.counters))  # fmt: skip
    assert len({id(built) for built in compiled}) == 1


def test_one_hardware_queue_does_not_hang():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_signaled as t\n"
        "t.test_every_band_is_whole_when_its_collective_runs(4)"
    )
    environment = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=100, check=True)


def test_a_module_checks_and_times_itself():
    command = [sys.executable, str(build(HALF).path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TFLOP/s" in done.stdout
