"""A GPU that is not there: what a host enqueues is remembered, and done when its streams allow.

Memory is the CPU's. Work runs in a random order within what streams and events order, so whatever
an order is missing for goes wrong sooner or later, and what can never run is a ``Deadlock``.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from overlapc.runtime.signaled import group_tables, signals, streams, waiting

SMS = 6
POISON = 77
"""Of memory that nobody has written."""
CUDA = torch.device("cuda", 0)
NOT_SUPPORTED = 801
"""``CUDA_ERROR_NOT_SUPPORTED``."""
COMPARISONS: dict[int, Callable[[int, int], bool]] = {
    0: lambda word, value: ctypes.c_int32(word - value).value >= 0,
    1: lambda word, value: word == value,
    2: lambda word, value: bool(word & value),
    3: lambda word, value: ctypes.c_uint32(~(word | value)).value != 0,
}
"""``CUstreamWaitValue_flags``, as CUDA's driver API defines its numbers: GEQ, EQ, AND, NOR."""


class Deadlock(AssertionError):
    """Work is left, and none of it can begin."""


class Misuse(BaseException):
    """Something that hangs, fails or is wrong on a real device at some times.

    No ``Exception``: what is tested falls back on those.
    """


@dataclass(eq=False)
class Work:
    """One thing on a stream; done when its steps are."""

    name: str
    steps: list[Callable[[], object]] = field(default_factory=list)
    after: list[Work] = field(default_factory=list)
    ready: Callable[[], bool] = lambda: True
    gives_up: Callable[[], object] | None = None
    """What a waiter does that has polled often enough."""
    gemm: Work | None = None
    """For which a waiter waits."""
    left: list[Callable[[], object]] = field(default_factory=list)
    begun: bool = False

    @property
    def done(self) -> bool:
        return self.begun and not self.left

    def comes_after(self, other: Work) -> bool:
        """Whether streams and events order this after the other work."""
        seen, waiting_for = set(), [self]
        while waiting_for:
            work = waiting_for.pop()
            if work is other:
                return True
            if id(work) not in seen:
                seen.add(id(work))
                waiting_for += work.after
        return False


class Stream:
    """A stream of a fake GPU."""

    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name, self.last = gpu, name, None
        gpu.streams.append(self)
        self.cuda_stream, self.device = len(gpu.streams), CUDA

    def wait_stream(self, other: Stream) -> None:
        if other.last is not None:
            name = f"{self.name} waits for {other.name}"
            self.gpu.enqueue(Work(name, after=[other.last]), self)

    def synchronize(self) -> None:
        self.gpu.synchronize()


class Gpu:
    """Streams, what was enqueued on them, and what has happened in which order."""

    def __init__(self, seed: int = 0, *, one_queue: bool = False) -> None:
        self.random, self.one_queue = random.Random(seed), one_queue
        self.streams: list[Any] = []
        self.work: list[Work] = []
        self.issued: list[str] = []
        self.happened: list[str] = []
        self.loaded: set[str] = set()
        self.current = [Stream(self, "compute")]
        self.captured: list[Work] | None = None
        self.running = False
        """Whether work is being done, and not enqueued."""
        self.gemm: Work | None = None
        """The one whose collectives have not all been enqueued."""

    @property
    def stream(self) -> Any:
        return self.current[-1]

    def enqueue(self, work: Work, stream: Any = None) -> None:
        """Put work at the end of a stream, the current one if none is given."""
        stream = stream or self.stream
        if stream.last is not None:
            work.after = [*work.after, stream.last]
        if self.captured is None:
            self.work.append(work)
        else:
            # What was enqueued before the capture is none of its business.
            work.after = [other for other in work.after if other in self.captured]
            if self.captured and not work.after:
                raise Misuse(f"{work.name} on {stream.name} is not in the capture")
            self.captured.append(work)
        work.left = list(work.steps)
        stream.last = work
        self.issued.append(work.name)

    def allocate(self) -> None:
        """Memory is asked for: it may have to wait until the device is idle."""
        if self.gemm is not None:
            raise Misuse("memory is allocated between a GEMM and its last collective")

    def load(self, name: str) -> None:
        """A kernel is launched: the first time its module is loaded, which waits likewise."""
        if name in self.loaded:
            return
        if self.captured is not None:
            raise Misuse(f"{name} is loaded during a capture")
        waits = (work for work in self.work if work.gemm and work.gemm is self.gemm)
        if any(not wait.done and not wait.comes_after(self.gemm) for wait in waits):
            raise Misuse(f"{name} is loaded behind a waiter")
        self.loaded.add(name)

    def synchronize(self) -> None:
        """Let everything happen, in one of the orders that are allowed."""
        if self.captured is not None:
            raise Misuse("the host waits during a capture")
        self.running = True
        try:
            while any(not work.done for work in self.work):
                self._step(self.random.choice(self._possible() or [self._giving_up()]))
        finally:
            self.running = False
            self.work.clear()

    def _step(self, work: Work) -> None:
        if not work.begun:
            work.begun = True
            self.happened.append(f"{work.name} begins")
        if work.left:
            work.left.pop(0)()
        if work.done:
            self.happened.append(f"{work.name} ends")

    def _possible(self) -> list[Work]:
        possible = []
        for work in self.work:
            free = not work.begun and all(other.done for other in work.after) and work.ready()
            if free or (work.begun and work.left):
                possible.append(work)
            if self.one_queue and not work.begun:
                break  # whatever was issued later stands behind it
        return possible

    def _giving_up(self) -> Work:
        for work in self.work:
            if work.gives_up and not work.begun and all(other.done for other in work.after):
                work.left = [work.gives_up]
                return work
        left = [work.name for work in self.work if not work.done]
        raise Deadlock(f"nothing can begin: {left}")


class Graph:
    """A captured graph of a fake GPU."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.nodes = gpu, []

    def capture_begin(self, **_: Any) -> None:
        assert self.gpu.captured is None
        self.gpu.captured = []
        self.before = [stream.last for stream in self.gpu.streams]
        self.gpu.stream.last = None
        self.gpu.enqueue(Work("capture begins"))

    def capture_end(self) -> None:
        self.nodes, self.gpu.captured = self.gpu.captured or [], None
        last = self.gpu.stream.last
        for stream, before in zip(self.gpu.streams, self.before, strict=False):
            stream.last = before
        if any(not last.comes_after(node) for node in self.nodes):
            raise Misuse("a stream of the capture was not joined")

    def replay(self) -> None:
        """Enqueue everything again: ordered as it was captured, and by nothing else."""
        copies: dict[int, Work] = {}
        before = [self.gpu.stream.last] if self.gpu.stream.last else []
        for node in self.nodes:
            after = [copies[id(other)] for other in node.after]
            copies[id(node)] = copy = replace(node, after=after or before, left=list(node.steps))
            self.gpu.work.append(copy)
        self.gpu.stream.last = list(copies.values())[-1]
        self.gpu.enqueue(Work("graph ends", after=list(copies.values())))


class Memory(TorchDispatchMode):
    """Makes tensors hold poison until the work that writes them has been done."""

    HOST = ("aten::lift_fresh", "aten::_to_copy", "aten::detach", "aten::clone")
    COMPUTED = ("aten::mm", "aten::cat")
    NEW = ("aten::empty", "aten::new_empty", "aten::zeros", "aten::ones", "aten::empty_strided")

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if self.gpu.running:
            return func(*args, **kwargs)
        if name in self.NEW:
            self.gpu.allocate()
            out = func(*args, **kwargs)
            value = {"aten::zeros": 0, "aten::ones": 1}.get(name)
            if value is not None:
                self.gpu.enqueue(Work("zero" if value == 0 else "one", [lambda: out.fill_(value)]))
            return out.fill_(POISON)
        if func._schema.is_mutable:
            self.gpu.enqueue(Work(name, [lambda: func(*args, **kwargs)]))
            return args[0]
        if name in self.COMPUTED:
            self.gpu.allocate()
            out = func(*args, **kwargs)
            self.gpu.enqueue(Work(name, [lambda: out.copy_(func(*args, **kwargs))]))
            return out.fill_(POISON)
        if name == "aten::_local_scalar_dense":
            self.gpu.synchronize()
        elif not func.is_view and name not in self.HOST:
            raise NotImplementedError(f"{name} on the fake GPU")
        return func(*args, **kwargs)


class OnCpu(TorchFunctionMode):
    """Makes tensors on the CPU, whatever the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{key: v for key, v in (kwargs or {}).items() if key != "device"})


@contextmanager
def in_memory_of(gpu: Gpu) -> Iterator[None]:
    """Let torch's operators be enqueued on the fake GPU, and read its memory."""
    with OnCpu(), Memory(gpu):
        yield


class Driver(ModuleType):
    """``cuda.bindings.driver`` of a fake GPU; fails with ``error``, or only in captures."""

    def __init__(self, gpu: Gpu, *, error: int = 0, captures: bool = True) -> None:
        super().__init__("driver")
        self.gpu, self.error, self.captures = gpu, error, captures

    def cuStreamWaitValue32(self, stream: int, address: int, value: int, flags: int) -> tuple[int]:
        """Enqueue a wait."""
        if self.error or (self.gpu.captured is not None and not self.captures):
            return (self.error or NOT_SUPPORTED,)
        word = ctypes.c_int32.from_address(address)
        holds = COMPARISONS[flags]
        ready = lambda: holds(word.value, value)  # noqa: E731
        work = Work("wait by driver", ready=ready, gemm=self.gpu.gemm)
        self.gpu.enqueue(work, self.gpu.streams[stream - 1])
        return (0,)


@contextmanager
def present(gpu: Gpu, driver: ModuleType | None = None) -> Iterator[None]:
    """Let torch and our modules find the fake GPU; without a ``driver`` no cuda-bindings."""
    patch = pytest.MonkeyPatch()
    package = SimpleNamespace(driver=driver) if driver else None
    for name, module in (("cuda", package), ("cuda.bindings", package)):
        patch.setitem(__import__("sys").modules, name, module)
    for name, value in _torch_cuda(gpu).items():
        patch.setattr(torch.cuda, name, value)
    on_device = waiting.driver_wait
    for module in (waiting, streams):
        patch.setattr(module, "driver_wait", lambda _: on_device(CUDA))
    patch.setattr(signals.Signals, "wait", lambda *args: _spin(gpu, *args))
    patch.setattr(group_tables, "apart", lambda make: make())  # its memory is this thread's
    patch.setattr(streams, "_warm", set())
    caches: Sequence[Any] = (streams.communication_stream, on_device, group_tables.bands_on)
    for cached in caches:
        cached.cache_clear()
    try:
        yield
    finally:
        patch.undo()
        for cached in caches:
            cached.cache_clear()


def _spin(gpu: Gpu, its: signals.Signals, group: int, max_polls: int = 0) -> None:
    gpu.load("waiter")
    counter, failed = its.counters[group, 0].numpy(), its.storage[-1, :1].numpy()
    gives_up = (lambda: failed.fill(group + 1)) if max_polls else None
    gpu.enqueue(
        Work(
            f"wait for {group}",
            ready=lambda: bool(counter >= its.targets[group]),
            gives_up=gives_up,
            gemm=gpu.gemm,
        )
    )


def _torch_cuda(gpu: Gpu) -> dict[str, Any]:
    class NewStream(Stream):
        def __init__(self, device: Any, priority: int = 0) -> None:
            super().__init__(gpu, f"comm({priority})" if priority else "other")

        @staticmethod
        def priority_range() -> tuple[int, int]:
            return 0, -3

    @contextmanager
    def stream(chosen: Any) -> Iterator[None]:
        gpu.current.append(chosen)
        try:
            yield
        finally:
            gpu.current.pop()

    return {
        "Stream": NewStream,
        "stream": stream,
        "current_stream": lambda device=None: gpu.stream,
        "device": lambda device: nullcontext(),
        "get_device_properties": lambda device: SimpleNamespace(multi_processor_count=SMS),
        "is_current_stream_capturing": lambda: gpu.captured is not None,
        "CUDAGraph": lambda: Graph(gpu),
    }
