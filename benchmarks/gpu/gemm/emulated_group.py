"""An EMULATED process group on one GPU, for the ops' own code: its other ranks are imagined.

They add nothing to a sum, and of an all-to-all each sends this rank what this rank sends it. So a
result is C itself, or this rank's part of it, as it was when its collective read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.gemm.emulated_link import EmulatedLink
from overlapc.runtime.signaled.communicators import Communicator, adopt
from overlapc.runtime.signaled.streams import communication_stream

ME = 1
"""This process's rank: not 0, so that parts are not where they would be by mistake."""


class EmulatedGroup(dist.ProcessGroup):
    """As many ranks as the link joins. Collectives run on streams, as NCCL's do."""

    def __init__(self, link: EmulatedLink, device: torch.device) -> None:
        super().__init__(ME, link.ranks)  # pyright: ignore[reportCallIssue]
        self.link, self.device = link, device
        self.stream = communication_stream(device, ("emulated", link))
        self.seen = torch.empty(0, device=device)
        """Where what was sent was put that goes to no result, by its place in its own memory."""
        # Its collectives are held to so many SMs anyhow.
        adopt(self, link.ctas, Communicator(self, ("signaled", link)))

    def reserve(self, elements: int, dtype: str) -> None:
        """Make room for tensors of so many elements; collectives allocate nothing."""
        kind = getattr(torch, dtype)
        if self.seen.dtype != kind or self.seen.numel() < elements:
            self.seen = torch.empty(elements, dtype=kind, device=self.device)

    def _get_backend(self, device: torch.device) -> Any:
        return SimpleNamespace(name=lambda: "nccl")

    def allreduce(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tensors: Sequence[torch.Tensor], options: Any
    ) -> Any:
        """In place, so that nothing is left to do but to take the time."""
        (band,) = tensors
        return self._run("all_reduce", options, band, self._seen(band))

    def _reduce_scatter_base(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, out: torch.Tensor, sent: torch.Tensor, options: Any
    ) -> Any:
        first = ME * out.numel()
        return self._run("reduce_scatter", options, sent, self._seen(sent), out, first)

    def alltoall_base(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        out: torch.Tensor,
        sent: torch.Tensor,
        receives: Sequence[int],
        sends: Sequence[int],
        options: Any,
    ) -> Any:
        """Of equal parts only."""
        if receives or sends:
            raise NotImplementedError("the emulated all-to-all is even")
        return self._run("all_to_all", options, sent, out)

    def _seen(self, sent: torch.Tensor) -> torch.Tensor:
        first = int(sent.storage_offset())
        return self.seen[first : first + sent.numel()]

    def _run(self, collective: str, options: Any, *tensors: Any) -> Any:
        """On the current stream; or beside it, where a work is asked for."""
        if not options.asyncOp:
            return self.link.move(collective, *tensors)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.link.move(collective, *tensors)
            event = torch.cuda.Event()
            event.record()
        return SimpleNamespace(wait=event.wait)
