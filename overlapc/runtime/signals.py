"""Counters of bands on a device: who makes and zeroes them, and how a stream waits for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from overlapc.codegen import COUNTER_STRIDE, Bands
from overlapc.errors import KernelError


@dataclass(frozen=True)
class Signals:
    """The counters of one GEMM in flight, and what they read when its bands are complete.

    Every GEMM gets its own from the caching allocator, in the order of the stream that was current:
    no two in flight share one, and under graph capture the zeroing is a node of the graph.
    """

    storage: torch.Tensor
    """int32[bands + 1, COUNTER_STRIDE]: column 0 counts; the last row names a band that never came.
    """
    bands: torch.Tensor
    """``Bands.table`` on the device."""
    targets: Sequence[int]
    """Tiles of each band."""

    @classmethod
    def zeroed(cls, bands: Bands, tiles_n: int, device: torch.device) -> Signals:
        """Zero counters on the current stream, before the GEMM that bumps them is launched."""
        groups = len(bands.rows)
        storage = torch.zeros(groups + 1, COUNTER_STRIDE, dtype=torch.int32, device=device)
        return cls(storage, bands_on(bands, device), bands.targets(tiles_n))

    @property
    def counters(self) -> torch.Tensor:
        """What the GEMM bumps: int32[bands, COUNTER_STRIDE]."""
        return self.storage[:-1]

    def wait(self, group: int, max_polls: int = 0) -> None:
        """Hold the current stream until band ``group`` is complete and visible.

        Launch the GEMM first: one thread spins. With ``max_polls`` it gives up after so many reads.
        """
        from overlapc.codegen.templates.signal import wait_for_group

        waiter: Any = wait_for_group
        waiter[(1,)](
            self.storage, self.storage[-1], group, self.targets[group], max_polls,
            COUNTER_STRIDE=COUNTER_STRIDE, num_warps=1,
        )  # fmt: skip

    def raise_if_given_up(self) -> None:
        """KernelError that names the band a waiter gave up on; waits for the current stream."""
        missing = int(self.storage[-1, 0])
        if not missing:
            return
        group = missing - 1
        raise KernelError(
            f"Band {group} was never complete: {int(self.storage[group, 0])} of"
            f" {self.targets[group]} tiles were announced.",
            where=f"signaled GEMM with bands of {len(self.targets)} groups",
            remedy="use the chunked schedule, and report this",
        )


@cache
def bands_on(bands: Bands, device: torch.device) -> torch.Tensor:
    """``bands.table`` on the device; copied once, and kept, since captured graphs point to it."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise KernelError(
            "A partition into bands cannot be copied to the device during graph capture.",
            where=f"bands of {bands.rows} rows",
            remedy="run once with these sizes before the capture",
        )
    return torch.tensor(bands.table, dtype=torch.int32, device=device)
