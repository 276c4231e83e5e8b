"""A GPU that gloo ranks pretend to have: streams that do everything at once, kernels interpreted.

What is sent, and by which communicator, is real; the order in which a device may do things is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from overlapc.codegen.interpreting import correct_interpreter
from overlapc.runtime.ranks import groups
from overlapc.runtime.signaled import communicators, group_tables, streams, waiting
from overlapc.runtime.signaled import schedule as signaled

SMS = 6
SECONDS = 20
"""For which a rank waits for its peers: a mutant shall not wait for long."""


class Stream:
    """A stream on which everything has happened."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device, self.cuda_stream = device, 0

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, -3

    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


def beside(group: dist.ProcessGroup, name: str, sms: int, device: torch.device) -> Any:
    """What ``communicators.beside`` makes, of gloo."""
    store = groups.store_beside(group, name)
    backend = dist.ProcessGroupGloo(store, group.rank(), group.size(), timedelta(seconds=SECONDS))
    return communicators.registered(backend, store, dist.ProcessGroup.BackendType.GLOO, device)


@contextmanager
def pretended_gpu(*, capturing: bool = False, lacks: str = "") -> Iterator[None]:
    """Let the CPU pass for a GPU whose collectives run on streams, unless it ``lacks`` something.

    Nothing is warm. Kernels run in a process that set TRITON_INTERPRET before.
    """
    correct_interpreter()
    cuda = {
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: Stream(),
        "device": lambda device: nullcontext(),
        "get_device_properties": lambda device: SimpleNamespace(multi_processor_count=SMS),
        "is_current_stream_capturing": lambda: capturing,
    }
    replaced: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, value) for name, value in cuda.items()),
        (communicators, "beside", beside),
        (communicators, "why_no_streams", lambda device, group: lacks),
        (signaled, "why_no_streams", lambda device, group: lacks),
        (signaled, "why_no_kernel", lambda device, architecture: ""),
        (streams, "_warm", set()),
    ]
    caches: list[Any] = [streams.communication_stream, group_tables.bands_on, waiting.driver_wait]
    for cached in caches:
        cached.cache_clear()
    stack = [patch.object(owner, name, value) for owner, name, value in replaced]
    for each in stack:
        each.start()
    try:
        yield
    finally:
        for each in reversed(stack):
            each.stop()
        for cached in caches:
            cached.cache_clear()
