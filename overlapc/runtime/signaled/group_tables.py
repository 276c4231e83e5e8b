"""What kernels read of their groups, on a device: copied once, and kept while calls may need it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from overlapc.codegen import Bands
from overlapc.codegen.packing import Packing
from overlapc.errors import KernelError

MOST_TABLES = 256
"""Kept of those that no captured graph reads, a few KiB each. Chosen: where rows vary there is one
for each number of rows that was called."""

Key = tuple[Bands | Packing, torch.device]


@dataclass
class Table:
    """One that is kept, and the streams on which kernels have read it."""

    memory: torch.Tensor
    streams: set[torch.cuda.Stream] = field(default_factory=set)

    def forget(self) -> None:
        """Let its memory be another's once the kernels that were launched have read it."""
        for stream in self.streams:
            self.memory.record_stream(stream)


class GroupTables:
    """The ``table`` of groups on a device.

    Those used longest ago go where there are too many. One that was read in a capture stays, for
    the graph reads it at every replay, and nobody says when the graph is gone.
    """

    def __init__(self, most: int = MOST_TABLES) -> None:
        self.most = most
        self._recent: OrderedDict[Key, Table] = OrderedDict()
        self._captured: dict[Key, Table] = {}
        self._lock = threading.Lock()

    def __call__(self, groups: Bands | Packing, device: torch.device) -> torch.Tensor:
        """Return int32 on the device, for a kernel that is launched on the current stream.

        KernelError where it would have to be copied during a graph capture.
        """
        on_gpu = device.type == "cuda"
        is_captured = on_gpu and torch.cuda.is_current_stream_capturing()
        key = groups, device
        with self._lock:
            table = self._captured.get(key) or self._recent.get(key)
            if table is None:
                table = self._recent[key] = Table(_copied(groups, device, is_captured=is_captured))
            if is_captured:
                self._captured[key] = table
                self._recent.pop(key, None)
            elif on_gpu:
                table.streams.add(torch.cuda.current_stream(device))
            if key in self._recent:
                self._recent.move_to_end(key)
            if len(self._recent) > self.most:
                self._recent.popitem(last=False)[1].forget()
            return table.memory

    def cache_clear(self) -> None:
        """Forget all, as functions that keep results do; nothing may be in flight."""
        self._recent.clear()
        self._captured.clear()


bands_on = GroupTables()


def _copied(groups: Bands | Packing, device: torch.device, *, is_captured: bool) -> torch.Tensor:
    if is_captured:
        raise KernelError(
            "A partition into groups cannot be copied to the device during graph capture.",
            where=f"{len(groups.slices)} groups",
            remedy="run once with these sizes before the capture",
        )
    return apart(lambda: torch.tensor(groups.table, dtype=torch.int32, device=device))


def apart(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What is made to be kept, by a thread of its own.

    Where Inductor makes CUDA graphs, what a first call allocates in its own thread is of a pool
    that graphs recorded later take back, whoever holds it.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
