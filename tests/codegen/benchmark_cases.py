"""The whole GPU benchmark without a GPU: tiny shapes, interpreted kernels, tensors of the CPU."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from benchmarks.gpu import linear as gpu_linear
from benchmarks.gpu import run as gpu
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.attention import caches as gpu_attention_caches
from benchmarks.gpu.attention import checks as gpu_attention_checks
from benchmarks.gpu.attention import part as gpu_attention
from benchmarks.gpu.attention import speed as gpu_attention_speed
from benchmarks.gpu.gemm import checks as gpu_checks
from benchmarks.gpu.gemm import emulated_link
from benchmarks.gpu.gemm import links as gpu_links
from benchmarks.gpu.gemm import nccl as gpu_nccl
from benchmarks.gpu.gemm import part as gpu_gemm
from benchmarks.gpu.gemm import rates as gpu_rates
from benchmarks.gpu.gemm import speed as gpu_speed
from benchmarks.gpu.gemm.emulated_link import EmulatedLink
from benchmarks.gpu.gemm.shapes import Shape
from benchmarks.gpu.report import Page
from benchmarks.measuring.paired import Samples
from overlapc.codegen.attention.backward import build_backward
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.planning.tiles import Tile
from overlapc.runtime import machine
from overlapc.runtime.attention import gradients as attention_gradients
from overlapc.runtime.attention import kernels as attention_kernels
from overlapc.runtime.linear import trials as linear_trials
from overlapc.runtime.measuring import clocks
from overlapc.runtime.signaled import communicators, group_tables, streams, waiting
from overlapc.runtime.signaled import schedule as signaled
from tests.runtime import pretended

sys.path.insert(0, str(Path(__file__).parent))
from link_cases import host_clock

ROOT, NCCL = Path(__file__).parents[2], "benchmarks.gpu.gemm.nccl"
SMS, LEFT = 6, 2
SHAPE = Shape("tiny", 2, 272, 56, 64)
"""Of several bands of the smaller tiles, the last with tiles that are not whole."""
TILES = {Tile(64, 64, 32, 4, 2): 1.0, Tile(128, 64, 32, 4, 2): 0.9}


class OnCpu(TorchFunctionMode):
    """Make every tensor on the CPU, whatever device was named but meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device") or "meta") != "meta":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class Stream:
    """A stream on which everything is done at once."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.priority, self.cuda_stream, self.device = priority, 0, device

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        pass

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, -5


class Event:
    """A point in the host's time."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def wait(self) -> None:
        assert self.at

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        assert self.timed
        return 1e3 * (end.at - self.at)


FAKES = {
    "is_available": lambda: True,
    "current_device": lambda: 0,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_properties": lambda device: SimpleNamespace(name="CPU", multi_processor_count=SMS),
    "is_current_stream_capturing": lambda: False,
    "synchronize": lambda device=None: None,
    "_sleep": lambda cycles: None,
    "device": lambda device: nullcontext(),
    "stream": lambda stream: nullcontext(),
    "current_stream": lambda device=None: Stream(),
    "Stream": Stream,
    "Event": Event,
}


def modelled(runs: Any, deadline: Any, seed: int) -> Samples:
    """Run everything once; seconds as cost models have them, which an interpreter's are not."""
    seconds = {}
    for name, run in runs.items():
        run()
        who, *sizes = name.split()
        if len(sizes) == 1:  # bytes of a collective
            seconds[name] = (1e-7 + 1e-9 * int(sizes[0]),)
        else:  # waves, and their depth
            wave = 1e-6 + int(sizes[1]) * (2e-9 if who == "ours" else 1e-9)
            seconds[name] = (5e-6 + int(sizes[0]) * wave,)
    return Samples(seconds)


def _sparing(make: Any) -> Any:
    return lambda ranks: replace(make(ranks), ctas=LEFT)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let the benchmark believe in a small GPU, whose tiles are small as well."""
    correct_interpreter()
    caches: list[Any] = [streams.communication_stream, group_tables.bands_on, waiting.driver_wait]
    for cached in caches:
        cached.cache_clear()
    links = {name: _sparing(make) for name, make in emulated_link.LINKS.items()}
    small = dict.fromkeys((("sm_90", "half"), ("sm_80", "half")), TILES)
    # Launches run one after another here: no collective is early.
    sees = gpu_checks._sees_early_bands
    with ExitStack() as stack:
        for each in (
            mock.patch.object(gpu_checks, "_sees_early_bands", lambda *its: sees(*its) or True),
            mock.patch.multiple(torch.cuda, **FAKES),
            mock.patch.dict("overlapc.planning.tiles.CONFIGURATIONS", small),
            mock.patch.dict(emulated_link.LINKS, links),
            mock.patch.object(gpu_speed, "LEFT", LEFT),
            mock.patch.object(streams, "_warm", set()),
            mock.patch.object(group_tables, "apart", lambda make: make()),
            mock.patch.object(dist, "is_nccl_available", return_value=False),
            mock.patch.object(signaled, "why_no_streams", return_value=""),
            mock.patch.object(signaled, "why_no_kernel", return_value=""),
            mock.patch.multiple(gpu_timing, WARM_UPS=0, MOST_ROUNDS=1, MOST_CALLS=1),
            mock.patch.object(torch.backends.cuda, "preferred_blas_library", return_value=None),
            mock.patch.multiple(gpu_checks, SIZES=((136, 80, 48),), STAGED_SIZES=(1160, 40, 40),
                                CALLS=2, REPLAYS=1, captured=lambda run: run),
            mock.patch.object(gpu_rates, "measure_on_device", modelled),
            mock.patch.object(gpu_links, "measure_on_device", modelled),
            mock.patch.multiple(gpu_rates, DEPTHS=(32, 96), SAMPLES=3, DELAY_NS=1000),
            mock.patch.multiple(gpu_links, SIZES=(1 << 10, 1 << 12), BESIDE=(64, 64, 64), TIMES=2),
            host_clock(),
            host_clock(gpu_rates),
            OnCpu(),
        ):  # fmt: skip
            stack.enter_context(each)
        yield
    for cached in caches:
        cached.cache_clear()


class Inline:
    """Runs rows here: of every table the first ones that can be measured, or all."""

    def __init__(self, first: int | None) -> None:
        self.first, self.measured = first, dict[str, int]()

    def run(self, row: gpu_worker.Row, limit: float) -> dict[str, Any]:
        before = self.measured.get(row.table, 0)
        if self.first is not None and before >= self.first:
            return {"row": row.name, "skipped": "left out"}
        found = gpu_worker.attempt(row)
        self.measured[row.table] = before + ("skipped" not in found)
        return found


def dry_run(out: str, first: int | None = None, shapes: int = 1) -> list[str]:
    """Run the part; the names of the files that it wrote."""
    rows = gpu_gemm.rows
    tiny = [SHAPE] * shapes
    with (
        pretended_gpu(),
        mock.patch.object(gpu_gemm, "rows", lambda done, shipped: rows(done, shipped, tiny)),
    ):
        gpu.measure("gemm", Page(Path(out), "gemm"), Inline(first), minutes=9)
    return sorted(path.name for path in Path(out).iterdir())


def dry_run_of_linears(out: str, first: int | None = None) -> list[str]:
    """Run the part of linear layers on two tiny ones; the names of the files that it wrote."""
    shape = gpu_linear.Shape
    layers = {"pair": shape((20,), 136, weights=2)}
    layers["joint"] = shape((40, 24, 24), 264, is_normed=True)
    calls = gpu_timing.MOST_CALLS  # as on a GPU: what is timed by events is short here
    with (
        pretended_gpu(),
        mock.patch.object(gpu_timing, "MOST_CALLS", calls),
        mock.patch.multiple(gpu_linear, LAYERS=layers, COUNTS=(1, 8), CHECK_SIZES=((40, 300),),
                            READ_BYTES=1 << 12, TINY=(1, 8, 16), CALLS=1, ROUNDS=1),
        mock.patch.multiple(clocks, FEWEST_ROUNDS=6, MOST_ROUNDS=6, LEAST_CALLS=1),
        mock.patch.multiple(linear_trials, COLD_BYTES=1, on_device=clocks.on_host),
        mock.patch.multiple(machine, architecture_of=lambda device: "sm_90",
                            multiprocessors=lambda device: SMS),
        mock.patch.object(torch, "compile", lambda function, **_: function),
    ):  # fmt: skip
        gpu.measure("linear", Page(Path(out), "linear"), Inline(first), minutes=9)
    return sorted(path.name for path in Path(out).iterdir())


DIM = 16
SMALL = {
    "SPEC": replace(gpu_attention_speed.SPEC, head_dim=DIM, value_dim=DIM, scale=0.25),
    "HEADS": 1,
    "DIM": DIM,
    "PRODUCT": 32,
    "COLD_BYTES": 1 << 13,
}

SMALL_LATENT = replace(
    gpu_attention_checks.LATENT, head_dim=DIM + DIM // 2, value_dim=DIM, groups=3, scale=0.25
)


@contextmanager
def small_attention() -> Iterator[None]:
    """Let the part of attention believe in a small GPU, and measure tiny ones."""
    checks = gpu_attention_checks
    narrow = {
        kind: (check, {name: narrowed(case) for name, case in cases.items()})
        for kind, (check, cases) in checks.CHECKS.items()
    }
    shape = gpu_attention_speed.PrefillShape
    with (
        pretended_gpu(),
        mock.patch.dict(checks.CHECKS, narrow),
        mock.patch.multiple(checks, SIZES=(2, 1, 20, 45), DECODE_SIZES=(3, 1, 1, 90),
                            GRADIENT_SIZES=(2, 1, 18, 37)),
        mock.patch.multiple(gpu_attention_speed, **SMALL),
        mock.patch.object(gpu_attention_caches, "LATENT", SMALL_LATENT),
        mock.patch.multiple(
            gpu_attention, K=32, SIZES=((2, 1), (1, 2), (3, 1), (1, 1)), WITH_FLEX=1,
            STATIC=((2, 64, 20, 4),), LONG=(shape(1, 2, 40, DIM), shape(1, 1, 24, DIM, False)),
            WIDE_DECODE=(gpu_attention_speed.DecodeShape(1, 2, 64, spread=300.0),),
            LATENTS=(gpu_attention_caches.LatentShape(2, 3, 64),),
            FLOAT8S=(gpu_attention_speed.DecodeShape(2, 2, 40),),
            LEARNT=(shape(1, 2, 20, DIM),),
            WIDE_PREFILL=(shape(1, 1, 32, DIM, spread=300.0),),
        ),
        mock.patch.object(gpu_linear, "READ_BYTES", 1 << 12),
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(1 << 22, 1 << 22)),
        mock.patch.object(torch, "compile", lambda function, **_: function),
    ):  # fmt: skip
        yield


def narrowed(case: Any) -> Any:
    """A case with fewer columns, but for latent ones, whose columns are what they are about."""
    if case.cache.shares_values:
        return case
    dims = {128: 32, 64: 16, 80: 20, 192: 48, 256: 64}
    spec = case.spec
    head, value = dims[spec.head_dim], dims[spec.value_dim]
    return replace(case, spec=replace(spec, head_dim=head, value_dim=value, scale=head**-0.5))


def dry_run_of_attention(out: str, first: int | None = None) -> list[str]:
    """Run the part of attention on tiny ones; the names of the files that it wrote."""
    with small_attention():
        gpu.measure("attention", Page(Path(out), "attention"), Inline(first), minutes=9)
    return sorted(path.name for path in Path(out).iterdir())


WRONG = {
    "scale": lambda spec: replace(spec, scale=1.05 * spec.scale),
    "one key too many": lambda spec: replace(spec, after=1),
    "no mask": lambda spec: replace(spec, program=""),
    "nothing is redone": lambda spec: replace(spec, softmax="online"),
}


def a_wrong_attention_is_seen(kind: str, name: str, wrong: str) -> list[dict[str, Any]]:
    """The row of a check, right and of a kernel that computes something else."""
    row = gpu_worker.Row("", "", "benchmarks.gpu.attention.checks.values",
                         {"kind": kind, "name": name})  # fmt: skip

    def attention(spec: Any, tile: Any) -> Any:
        return build_attention(WRONG[wrong](spec), tile)

    def decode(spec: Any, cache: Any, tile: Any) -> Any:
        return build_decode(WRONG[wrong](spec), cache, tile)

    def backward(spec: Any, *rest: Any) -> Any:
        return build_backward(WRONG[wrong](spec), *rest)

    with small_attention():
        right = gpu_worker.attempt(row)
        with (
            mock.patch.object(attention_gradients, "build_backward", backward),
            mock.patch.object(gpu_attention_checks, "build_attention", attention),
            mock.patch.object(attention_kernels, "build_decode", decode),
        ):
            return [right, gpu_worker.attempt(row)]


def a_lossy_link_is_seen(collective: str, by_columns: bool) -> list[dict[str, Any]]:
    """The row of a staged path, right and where the collective leaves its last elements out."""
    row = gpu_worker.Row(
        "", "", "benchmarks.gpu.gemm.checks.staged",
        {"collective": collective, "by_columns": by_columns, "epilogue": "gated"},
    )  # fmt: skip
    move = EmulatedLink.move

    def lossy(self: Any, kind: str, sent: Any, target: Any, *rest: Any, **named: Any) -> None:
        before = target.view(-1)[-40:].clone()
        move(self, kind, sent, target, *rest, **named)
        target.view(-1)[-40:] = before
        if rest and rest[0] is not None:
            rest[0].view(-1)[-40:] = 0

    with pretended_gpu():
        right = gpu_worker.attempt(row)
        with mock.patch.object(EmulatedLink, "move", lossy):
            return [right, gpu_worker.attempt(row)]


@contextmanager
def gloo_for_nccl() -> Iterator[None]:
    """Let NCCL's rows run on gloo, on small matrices."""
    new_group, init = dist.new_group, dist.init_process_group
    rank = [sys.executable, __file__]
    with (
        pretended_gpu(),
        mock.patch.object(communicators, "beside", pretended.beside),
        mock.patch.object(communicators, "why_no_streams", return_value=""),
        mock.patch.object(gpu_nccl.nccl, "version", return_value=(2, 30, 3)),
        mock.patch.object(dist, "is_nccl_available", return_value=True),
        mock.patch.object(dist, "init_process_group", lambda backend, **its: init("gloo", **its)),
        mock.patch.object(dist, "new_group", lambda ranks, backend: new_group(ranks)),
        mock.patch.multiple(gpu_nccl, SIZES=(1040, 40, 64), CALLS=2, LEFT=LEFT, RANK=rank),
    ):
        yield


def one_rank(kind: str) -> dict[str, Any]:
    """The row of one rank."""
    with gloo_for_nccl():
        return gpu_worker.attempt(gpu_worker.Row("", "", f"{NCCL}.one_rank", {"kind": kind}))


def two_ranks() -> dict[str, Any]:
    """The row of two ranks, each in a process that runs this file."""
    with gloo_for_nccl(), mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        return gpu_worker.attempt(gpu_worker.Row("", "", f"{NCCL}.two_ranks"))


def main() -> None:
    """One of the two ranks."""
    assert set(gpu_nccl.TWO_RANKS.items()) <= set(os.environ.items())
    with gloo_for_nccl():
        sys.stdout.write(json.dumps(gpu_nccl.rank(sys.argv[1], int(sys.argv[2]))) + "\n")


if __name__ == "__main__":
    main()
