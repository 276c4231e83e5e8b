"""The signaled GEMM on a real device: values, order of bands, replays, and no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overlapc.codegen import Bands, GemmSpec, build
from overlapc.codegen.oracle import error_over_bound, random_operand
from overlapc.codegen.tiles import spec_for
from overlapc.errors import KernelError, SignalError
from overlapc.planning.tiles import SWEEPS, tiles_for
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.signaled import streams
from overlapc.runtime.signaled.communicators import Communicator, communicator
from overlapc.runtime.signaled.group_tables import bands_on
from overlapc.runtime.signaled.requirements import why_no_kernel, why_no_streams
from overlapc.runtime.signaled.signals import Signals, polls_in
from overlapc.runtime.signaled.staged import StagedGemm
from overlapc.runtime.signaled.waiting import driver_wait

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

POLLS = 20_000_000
"""Seconds of polling: a band that is late by so much never comes."""
REPLAYS = 1000
HALF = GemmSpec("bfloat16", "bfloat16", **tiles_for("sm_80", "bfloat16")[0].built, flatten=True)
SPECS = {
    "bfloat16": HALF,
    "float16 with bias": replace(HALF, dtype="float16", out="float16", bias=True),
    "float32": GemmSpec("float32", "float32", **tiles_for("sm_80", "float32")[0].built),
    "row-major B": replace(HALF, b="row"),
    "strided": replace(HALF, a="strided", b="strided"),
    "announced at once": replace(HALF, flatten=False),
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


def all_reduced(
    spec: GemmSpec,
    a: torch.Tensor,
    b: torch.Tensor,
    rows: Sequence[int],
    all_reduce: Callable[[torch.Tensor], object] | Sender,
    *,
    group: Any = None,
    **named: Any,
) -> torch.Tensor:
    """The product, each band given to ``all_reduce`` as soon as it is whole; 8 SMs are left."""
    sender: Any = all_reduce
    if not isinstance(all_reduce, Sender):

        def start(group: Any, out: Any, sent: torch.Tensor, *sizes: Any) -> Any:
            all_reduce(sent)
            return SimpleNamespace(wait=lambda: None)

        sender = SimpleNamespace(collective="all_reduce", reduce="sum", start=start)
    parts = producer_parts(Dealing("all_reduce", 0, sum(rows), 2, 0), rows)
    return StagedGemm.of(build(spec), sender, parts, result_units=sum(rows))(
        a, b, group, 8, **named
    )


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


@pytest.fixture(params=["driver", "kernel"])
def waiter(request, monkeypatch):
    """Who waits in the calls of a test."""
    if request.param == "kernel":
        monkeypatch.setattr(streams, "hold", Signals.wait)
    elif isinstance(found := driver_wait(torch.device("cuda", 0)), str):
        pytest.skip(found)
    return request.param


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_every_band_is_whole_when_its_collective_runs(groups, waiter):
    send_bands(groups)


def send_bands(groups: int, max_polls: int = 0) -> None:
    m, n, k = 8192, 4096, 512
    a, b, _ = operands(HALF, m, n, k)
    spec = spec_for(a, b, architecture=architecture())
    # Made before: a collective that asked for memory would wait for the whole GEMM.
    received = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")

    def receive(band: torch.Tensor) -> None:
        first = int(band.storage_offset()) // n
        received[first : first + len(band)].copy_(band)

    for _ in range(3):  # cold, then overlapped twice
        received.fill_(torch.nan)
        out = all_reduced(spec, a, b, equal_bands(spec, m, groups), receive, max_polls=max_polls)
        assert torch.equal(received, out)
        assert error_over_bound(spec, a, b, None, out) <= 1


def test_waiters_that_count_see_whole_bands_too():
    send_bands(4, max_polls=POLLS)


def test_graph_replays_do_not_hang_or_drift(waiter):
    replay_bands()


def replay_bands() -> None:
    m, n, k = 1024, 1024, 256
    a, b, _ = operands(HALF, m, n, k)
    rows = equal_bands(HALF, m, 4)

    def run() -> torch.Tensor:
        return all_reduced(HALF, a, b, rows, double)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(REPLAYS):
        graph.replay()
    a.neg_()  # what an old band would not show
    out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert error_over_bound(HALF, a, b, None, out / 2) <= 1


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_first_call_in_a_capture_is_refused(monkeypatch):
    monkeypatch.setattr(streams, "_warm", set())
    a, b, _ = operands(HALF, 256, 256, 64)
    graph = torch.cuda.graph(torch.cuda.CUDAGraph())
    with pytest.raises(KernelError, match="during graph capture"), graph:
        all_reduced(HALF, a, b, (256,), double)
    torch.cuda.synchronize()


def test_a_band_that_never_comes_is_named():
    bands = Bands.of((HALF.block_m, HALF.block_m), HALF.block_m)
    signals = Signals.zeroed(bands, 3, torch.device("cuda", torch.cuda.current_device()))
    signals.counters[0, 0] = 3
    for group in range(2):
        signals.wait(group, max_polls=polls_in(0.1))
    with pytest.raises(SignalError, match="Band 1 was never complete: 0 of 3 tiles"):
        signals.raise_if_given_up()


def test_a_communicator_of_its_own_sends_in_eager_mode_and_in_graphs(one_rank, waiter):
    device = torch.device("cuda", torch.cuda.current_device())
    assert why_no_streams(device, one_rank) == why_no_kernel(device, architecture()) == ""
    made = communicator(one_rank, 8, device, 10)
    assert isinstance(made, Communicator), made
    a, b, _ = operands(HALF, 1024, 512, 256)
    rows, sender = equal_bands(HALF, 1024, 4), Sender("all_reduce", "sum", in_stream=True)

    def run() -> torch.Tensor:
        return all_reduced(HALF, a, b, rows, sender, group=made.group, name=made.name)

    for _ in range(3):
        assert error_over_bound(HALF, a, b, None, run()) <= 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    assert error_over_bound(HALF, a, b, None, out) <= 1


def test_a_table_that_is_kept_is_of_no_pool_of_its_caller():
    device, pool = torch.device("cuda", torch.cuda.current_device()), torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        table = bands_on(Bands.of((7 * HALF.block_m, 5), HALF.block_m), device)
        its = torch.empty(8, device=device)

    def is_of_pool(tensor: torch.Tensor) -> bool:
        at = tensor.data_ptr()
        return any(
            part["address"] <= at < part["address"] + part["total_size"] for part in pool.snapshot()
        )

    assert is_of_pool(its)
    assert not is_of_pool(table)


def test_new_row_counts_and_sweeps_compile_nothing():
    kernel = build(HALF)
    compiled = []
    for m, sweep in zip((1, 127, 128, 129, 4096), SWEEPS, strict=True):
        a, b, _ = operands(HALF, m, 512, 256)
        c = torch.empty(m, 512, dtype=torch.bfloat16, device="cuda")
        signals = Signals.zeroed(Bands.of((m,), HALF.block_m), kernel.tiles_n(512), c.device)
        compiled.append(kernel(a, b, c, ctas=m % 7 + 1, sweep=sweep, bands=signals.bands,
                               counters=signals.counters))  # fmt: skip
    assert len({id(built) for built in compiled}) == 1


def test_what_is_compiled_ahead_is_what_a_call_launches():
    spec = replace(HALF, stages=2)
    kernel = build(spec)
    a, b, _ = operands(spec, 300, 512, 256)
    kernel.compile(a, b)
    c = torch.empty(300, 512, dtype=torch.bfloat16, device="cuda")
    signals = Signals.zeroed(Bands.of((300,), spec.block_m), kernel.tiles_n(512), c.device)
    compiler = kernel.module.KERNEL
    given = {"bands": signals.bands, "counters": signals.counters}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_do_compile", lambda *_: pytest.fail("it is compiled again"))
        kernel(a, b, c, ctas=8, **given)
    assert error_over_bound(spec, a, b, None, c) <= 1


@pytest.mark.parametrize("call", ["send_bands(4)", "replay_bands()"])
@pytest.mark.parametrize("first", ["", "t.streams.hold = t.Signals.wait"], ids=["driver", "kernel"])
def test_one_hardware_queue_does_not_hang(call, first):
    folder = str(Path(__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import test_signaled as t; {first}\nt.{call}"
    )
    environment = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)


def test_a_module_checks_and_times_itself():
    command = [sys.executable, str(build(HALF).path)]
    # The package need not be installed: it is imported from the root, as here.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TFLOP/s" in done.stdout
