"""Counters of bands on a device: who makes and zeroes them, and how a stream waits for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from overlapc.codegen import COUNTER_STRIDE, Bands
from overlapc.codegen.packing import Packing
from overlapc.errors import SignalError
from overlapc.runtime.signaled.group_tables import bands_on

POLL_SECONDS = 1e-6
"""Of one read of a counter: near a round trip to the L2 cache, so a timeout is of this order."""


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
    """``Bands.table`` on the device, or what else a kernel reads of its groups."""
    targets: Sequence[int]
    """Tiles of each band."""

    @classmethod
    def zeroed(cls, bands: Bands | Packing, tiles_n: int, device: torch.device) -> Signals:
        """Zero counters on the current stream, before the GEMM that bumps them is launched."""
        is_packed = isinstance(bands, Packing)
        targets = bands.targets if is_packed else bands.targets(tiles_n)
        return cls.of(bands_on(bands, device), targets)

    @classmethod
    def of(cls, table: torch.Tensor, targets: Sequence[int]) -> Signals:
        """The same for groups of any kind: what the kernel reads of them, and tiles of each."""
        size = (len(targets) + 1, COUNTER_STRIDE)
        return cls(torch.zeros(size, dtype=torch.int32, device=table.device), table, targets)

    @property
    def counters(self) -> torch.Tensor:
        """What the GEMM bumps: int32[bands, COUNTER_STRIDE]."""
        return self.storage[:-1]

    def address(self, group: int) -> int:
        """Where the counter of a band stands in device memory."""
        return self.storage.data_ptr() + self.storage.element_size() * group * COUNTER_STRIDE

    def wait(self, group: int, max_polls: int = 0) -> None:
        """Hold the current stream until band ``group`` is complete and visible.

        Launch the GEMM first: one CTA polls. With ``max_polls`` it gives up after so many reads.
        """
        from overlapc.codegen.templates.signal import wait_for_group

        waiter: Any = wait_for_group
        waiter[(1,)](
            self.storage, self.storage[-1], group, self.targets[group], max_polls,
            COUNTER_STRIDE=COUNTER_STRIDE, num_warps=1,
        )  # fmt: skip

    def raise_if_given_up(self) -> None:
        """SignalError that names the bands a waiter gave up on; waits for the current stream."""
        last = int(self.storage[-1, 0])
        if not last:
            return
        announced = self.counters[:, 0].tolist()
        short = [
            f"Band {group} was never complete: {seen} of {target} tiles were announced."
            for group, (seen, target) in enumerate(zip(announced, self.targets, strict=True))
            if seen < target
        ]
        raise SignalError(
            " ".join(short) or f"Band {last - 1} came after its waiter had given up.",
            where=f"signaled GEMM with {len(self.targets)} bands",
            remedy="use the chunked schedule, and report this"
            if short
            else "wait for longer, or use the chunked schedule",
        )


def polls_in(seconds: float) -> int:
    """How often a waiter reads its counter in so many seconds: once or more, and within int32."""
    return min(max(1, round(seconds / POLL_SECONDS)), 2**31 - 1)
