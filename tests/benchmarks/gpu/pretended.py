"""A GPU that is none, for the benchmark: kernels interpreted, tensors of the CPU, rows inline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.gemm import checks as gpu_checks
from benchmarks.gpu.gemm import emulated_link
from benchmarks.gpu.gemm import links as gpu_links
from benchmarks.gpu.gemm import rates as gpu_rates
from benchmarks.gpu.gemm import speed as gpu_speed
from benchmarks.measuring.paired import Samples
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.planning.tiles import Tile
from overlapc.runtime.signaled import group_tables, streams, waiting
from overlapc.runtime.signaled import schedule as signaled
from tests.benchmarks.gpu.link_cases import host_clock

SMS, LEFT = 6, 2
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
            mock.patch.multiple(gpu_checks, SIZES=((200, 80, 48),), STAGED_SIZES=(1160, 40, 40),
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
