"""The whole GPU benchmark without a GPU: tiny shapes, interpreted kernels, tensors of the CPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from benchmarks import gpu, gpu_gemm, gpu_timing

sys.path.insert(0, str(Path(__file__).parent))
from link_cases import host_clock


class OnCpu(TorchFunctionMode):
    """Make every tensor on the CPU, whatever device was named."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class Stream:
    """A stream on which everything is done at once."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.priority = priority

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, -5


class Event:
    """A point in the host's time."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


FAKES = {
    "is_available": lambda: True,
    "current_device": lambda: 0,
    "get_device_capability": lambda: (9, 0),
    "get_device_properties": lambda device: SimpleNamespace(name="CPU", multi_processor_count=20),
    "is_current_stream_capturing": lambda: False,
    "synchronize": lambda: None,
    "_sleep": lambda cycles: None,
    "device": lambda device: nullcontext(),
    "stream": lambda stream: nullcontext(),
    "current_stream": lambda device=None: Stream(),
    "Stream": Stream,
    "Event": Event,
}


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let the benchmark believe in a GPU of 20 SMs."""
    shapes = (gpu_gemm.Shape("tiny", 260, 250, 64),)
    with (
        mock.patch.multiple(torch.cuda, **FAKES),
        mock.patch.object(gpu_gemm, "SHAPES", shapes),
        mock.patch.object(gpu_gemm, "PARTS", (2,)),
        mock.patch.multiple(gpu_timing, WARM_UPS=1, MOST_ROUNDS=2),
        host_clock(),
        OnCpu(),
    ):
        yield


def dry_run(out: str) -> list[str]:
    """Run the command; the names of the files that it wrote."""
    # bfloat16 products are wrong in the interpreter, so they stand for nothing here.
    right = mock.patch.object(gpu_gemm, "checked_error", return_value=0.5)
    whole = mock.patch.object(gpu_gemm, "POLLS", 1000)
    with pretended_gpu(), right, whole:
        assert gpu.main(["gemm", "--minutes", "0.01", "--out", out]) == 0
    return sorted(path.name for path in Path(out).iterdir())


def float16_is_checked() -> list[float]:
    """The errors that the benchmark's own check finds where the interpreter is right."""
    with pretended_gpu():
        specs = [spec for spec in gpu_gemm.checked_specs("sm_90") if spec.dtype != "bfloat16"]
        return [gpu_gemm.checked_error(spec, 300, 260, 70) for spec in specs]
