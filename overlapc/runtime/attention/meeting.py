"""Counters at which the CTAs of a launch meet, zeros before it and after: no memset goes before.

A launch that ends leaves them as it found them, so they serve the next of its stream. A captured
graph may be replayed on any stream, beside whatever runs there: each launch that is captured gets
some that nothing else ever has, as the memory of its partial sums is its graph's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from overlapc.runtime.signaled import group_tables

LEAST_KEPT = 1 << 14
"""Counters of a stream, 64 KiB; chosen: of 2048 sequences of 8 heads."""
MOST_CAPTURED = 1 << 20
"""Counters of all graphs of a device, 4 MiB; chosen: of 32 layers with 512 blocks of rows in 64
graphs. Nobody says when a graph is gone; one captured when all are given out has a memset."""
TOGETHER = 4
"""Counters of 16 bytes. Triton compiles apart for pointers that are no multiple of these, and would
do so, and load it, in the midst of a capture."""


def _made(count: int, device: torch.device) -> torch.Tensor:
    """Zeros that are there for every stream, in memory of no graph."""

    def make() -> torch.Tensor:
        zeros = torch.zeros(count, dtype=torch.int32, device=device)
        torch.cuda.current_stream(device).synchronize()
        return zeros

    return group_tables.apart(make)


def _stream_of(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _is_captured() -> bool:
    return torch.cuda.is_current_stream_capturing()


class Counters:
    """Gives int32 zeros of a device, for one launch on its current stream."""

    def __init__(
        self,
        make: Callable[[int, torch.device], torch.Tensor] = _made,
        stream_of: Callable[[torch.device], int] = _stream_of,
        is_captured: Callable[[], bool] = _is_captured,
    ) -> None:
        self._make, self._stream_of, self._is_captured = make, stream_of, is_captured
        self._of_streams: dict[tuple[torch.device, int], list[torch.Tensor]] = {}
        self._of_graphs: dict[torch.device, torch.Tensor] = {}
        """Those that are not given out."""
        self._lock = threading.Lock()

    def __call__(self, count: int, device: torch.device) -> torch.Tensor:
        """Return int32[count] of zeros, that the launch is to leave zeros.

        In a capture before any other call on the device, a memset of the graph makes them.
        """
        if not count:
            return torch.empty(0, dtype=torch.int32, device=device)
        with self._lock:
            if self._is_captured():
                return self._captured(count, device)
            return self._kept(count, device)

    def _kept(self, count: int, device: torch.device) -> torch.Tensor:
        if device not in self._of_graphs:
            self._of_graphs[device] = self._make(MOST_CAPTURED, device)
        # Those that were too few stay: launches that use them may be under way.
        found = self._of_streams.setdefault((device, self._stream_of(device)), [])
        if not found or found[-1].numel() < count:
            found.append(self._make(max(LEAST_KEPT, 1 << (count - 1).bit_length()), device))
        return found[-1][:count]

    def _captured(self, count: int, device: torch.device) -> torch.Tensor:
        left = self._of_graphs.get(device)
        if left is None or left.numel() < count:
            return torch.zeros(count, dtype=torch.int32, device=device)
        self._of_graphs[device] = left[-(-count // TOGETHER) * TOGETHER :]
        return left[:count]


_of_gpus = Counters()


def counters(count: int, device: torch.device) -> torch.Tensor:
    """As of ``Counters``; on processors new ones."""
    if device.type == "cuda":
        return _of_gpus(count, device)
    return torch.zeros(count, dtype=torch.int32, device=device)
