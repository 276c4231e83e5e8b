"""An H200 that is absent: Triton compiles and launches for it in earnest, tensors have no content.

Tensors are fakes on ``cuda:0``, of any size; kernels are compiled by ptxas, loaded and launched by
Triton's own launcher into the driver of ``libcuda.c``, which checks and counts. So all is seen that
does not depend on values: dispatch by device, Triton's specialization and its launcher, tensor
maps, shared memory, what is asked of torch.cuda. A number that is read of a tensor is zero, a truth
true, and tensors are equal.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from overlapc.runtime.attention import gradients as attention_gradients
from overlapc.runtime.attention import op as attention
from overlapc.runtime.attention import paged
from overlapc.runtime.linear import op as linear
from overlapc.runtime.signaled import group_tables

HERE = Path(__file__).parent
NAME, SMS, MEMORY = "NVIDIA H200", 132, 150 << 30
CUDA = torch.device("cuda", 0)
GENERATOR = torch.Generator


class Misuse(BaseException):
    """What fails on a real device. No ``Exception``: rows of the benchmark outlive those."""


class Tensors(FakeTensorMode):
    """Fakes whose content is zero, or true; our own ops run as they do on a device."""

    @property
    def avoid_device_init(self) -> bool:
        """Whatever torch.cuda says."""
        return True

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            state.synchronize()
            return args[0].dtype == torch.bool or (0.0 if args[0].is_floating_point() else 0)
        if func is aten.equal.default:
            state.synchronize()
            return True
        if func.namespace == "overlapc" and func._opname in RUNS:
            with self:
                return RUNS[func._opname](*args, **(kwargs or {}))
        return super().dispatch(func, types, args, kwargs)


RUNS = {
    "attention": attention._run,
    "attention_backward": attention_gradients._run,
    "linear": linear.run,
    "linears": linear.run,
    "paged_attention": paged._run,
}
"""What our library runs for an op of ours on a device; of others the fake will do."""


class Device:
    """What the host has told the device so far."""

    def __init__(self) -> None:
        self.streams: list[Any] = [Stream(default=True)]
        self.capturing, self.waits = False, 0
        self.driver: Any = None

    def capture(self, begins: bool) -> None:
        self.capturing = begins
        self.driver.capture(begins)

    def wait(self, stream: int, address: int, value: int, flags: int) -> tuple[int]:
        """As ``cuStreamWaitValue32`` of cuda.bindings."""
        assert all(isinstance(each, int) for each in (stream, address, value, flags))
        assert address % 4 == 0
        assert 0 <= value < 1 << 32  # nobody waits for 0
        self.waits += 1
        return (0,)

    def synchronize(self, device: Any = None) -> None:
        if self.capturing:
            raise Misuse("the host waits during a capture")


class Stream:
    """A stream, as ``torch.cuda.Stream`` is asked for one."""

    made = 0

    def __init__(self, device: Any = None, priority: int = 0, *, default: bool = False) -> None:
        assert device is None or torch.device(device).type == "cuda"
        Stream.made += not default
        self.cuda_stream, self.device, self.priority = Stream.made, CUDA, priority

    def wait_stream(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)

    def synchronize(self) -> None:
        state.synchronize()

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, -5


class Event:
    """A point in the host's time."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed, self.at = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        assert self.at

    def synchronize(self) -> None:
        assert self.at
        state.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        assert self.timed
        assert end_event.timed
        return max(1e3 * (end_event.at - self.at), 1e-3)


class Graph:
    """A CUDA graph of which the host's part is run once, while it is captured."""

    captured = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        assert not state.capturing
        if state.streams[-1] is state.streams[0]:
            raise Misuse("captures are not made on the default stream")
        state.capture(True)

    def capture_end(self) -> None:
        assert state.capturing
        state.capture(False)
        self.captured = True

    def replay(self) -> None:
        assert self.captured


@contextmanager
def stream_of(stream: Stream) -> Iterator[None]:
    state.streams.append(stream)
    try:
        yield
    finally:
        state.streams.pop()


@contextmanager
def capturing(
    cuda_graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    state.synchronize()
    with stream_of(stream or Stream()):
        cuda_graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        finally:
            cuda_graph.capture_end()


class Guard:
    """Of ``torch.cuda.device`` and ``device_of``."""

    def __init__(self, of: Any) -> None:
        device = of.device if isinstance(of, torch.Tensor) else torch.device(of)
        assert device.type == "cuda", device

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def properties(device: Any = None) -> Any:
    return SimpleNamespace(name=NAME, multi_processor_count=SMS, major=9, minor=0)


state = Device()
FAKES: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_name": lambda device=None: NAME,
    "get_device_properties": properties,
    "is_current_stream_capturing": lambda: state.capturing,
    "synchronize": state.synchronize,
    "mem_get_info": lambda device=None: (MEMORY, MEMORY),
    "_sleep": lambda cycles: None,
    "device": Guard,
    "device_of": Guard,
    "stream": stream_of,
    "current_stream": lambda device=None: state.streams[-1],
    "Stream": Stream,
    "Event": Event,
    "CUDAGraph": Graph,
    "graph": capturing,
}
"""Of torch.cuda, what is used; anything else raises, for there is no device."""


def address(tensor: torch.Tensor) -> int:
    """Of a fake, aligned as the allocator's are: one of its storage, and where it begins there."""
    storage = tensor.untyped_storage()._cdata << 5
    return storage - storage % 512 + tensor.storage_offset() * tensor.element_size()


def gradients(outputs: Any, inputs: Any, grad_outputs: Any) -> list[torch.Tensor]:
    """As ``torch.autograd.grad``, whose engine needs a device: an op of ours runs its own, of torch
    nothing is run."""
    if "overlapc" not in type(outputs.grad_fn).__name__:
        return [torch.zeros_like(each) for each in inputs]
    return [each for each in outputs.grad_fn.apply(grad_outputs, None) if each is not None]


def generator(device: Any = None) -> torch.Generator:
    """One of the processor: of fakes nothing is drawn."""
    return GENERATOR()


def here(make: Callable[[], Any]) -> Any:
    """Make something in this thread."""
    return make()


def load_driver(folder: Path) -> Any:
    """Build the driver in a folder, as ``libcuda.so.1``, and let whoever asks for one find it."""
    from triton.backends import nvidia

    include = Path(nvidia.__file__).parent / "include"
    library = _built(folder / "libcuda.so.1", "libcuda.c", include, "-Wl,-soname,libcuda.so.1")
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def load_guard(folder: Path) -> None:
    """Let torch slice fakes of a device of which it knows nothing."""
    torch_home = Path(torch.__file__).parent
    where = ["-L", str(torch_home / "lib"), "-lc10"]
    ctypes.CDLL(str(_built(folder / "guard.so", "guard.cpp", torch_home / "include", *where)))


def _built(path: Path, source: str, include: Path, *more: str) -> Path:
    compiler = ["g++", "-std=c++20"] if source.endswith("cpp") else ["gcc"]
    flags = ["-shared", "-fPIC", "-w", "-I", str(include)]
    subprocess.run([*compiler, *flags, str(HERE / source), *more, "-o", str(path)], check=True)
    return path


@contextmanager
def absent_h200(folder: Path) -> Iterator[Any]:
    """Let this process believe in it; gives what the host has told it."""
    state.driver = load_driver(folder)
    load_guard(folder)
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **FAKES))
        bindings = SimpleNamespace(driver=SimpleNamespace(cuStreamWaitValue32=state.wait))
        modules: Any = {"cuda": SimpleNamespace(bindings=bindings), "cuda.bindings": bindings}
        stack.enter_context(mock.patch.dict(sys.modules, modules))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", address, create=True))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context"))
        # Another thread would make tensors of a device that is there.
        stack.enter_context(mock.patch.object(group_tables, "apart", side_effect=here))
        stack.enter_context(mock.patch.object(torch, "Generator", side_effect=generator))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", gradients))
        found_by_triton: Any = CudaDriver()
        found_by_triton.get_current_stream = lambda device: state.streams[-1].cuda_stream
        driver.set_active(found_by_triton)
        stack.enter_context(Tensors(allow_non_fake_inputs=True))
        yield state
