"""A GEMM whose groups are sent while it runs, by any collective: sizes and groups are known."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from overlapc.codegen import Bands, Kernel
from overlapc.runtime.layout import Part
from overlapc.runtime.sending import Sender
from overlapc.runtime.signals import Signals
from overlapc.runtime.staged_sending import staged_collectives
from overlapc.runtime.staging import Staging
from overlapc.runtime.streams import (
    communication_stream,
    is_warm,
    overlap,
    resident_ctas,
    warmth,
)


@dataclass(frozen=True)
class StagedGemm:
    """``A @ B``, with its epilogue, and the collective of each of its groups."""

    kernel: Kernel
    sender: Sender
    parts: tuple[Part, ...]
    units: tuple[int, int]
    """Of the program, and of the result."""
    unit_rows: tuple[int, int]
    """Rows of C in one unit of the program, and of the result: fewer where dimension 1 is dealt
    out."""
    bands: Bands
    is_in_place: bool
    """Whether the GEMM writes the result itself: that of an all-reduce."""

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        sender: Sender,
        parts: Sequence[Part],
        *,
        result_units: int,
        rows_per_unit: int = 1,
        across: int = 1,
        turned: int = 0,
    ) -> StagedGemm:
        """The GEMM for these groups; ``KernelError`` where they cannot be staged.

        ``across`` and ``turned`` as in ``Staging``.
        """
        staging = Staging.of(parts, rows_per_unit, across)
        return cls(
            kernel,
            sender,
            tuple(parts),
            (sum(part.computed.count for part in parts), result_units),
            (rows_per_unit, rows_per_unit // across),
            staging.bands(kernel.spec.block_m, turned),
            sender.collective == "all_reduce",
        )

    def __call__(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        group: dist.ProcessGroup,
        sms_for_comm: int,
        *,
        name: Hashable = None,
        max_polls: int = 0,
        **operands: Any,
    ) -> torch.Tensor:
        """Return the collective's result, [rows, n], ready on the current stream.

        ``operands``: what the kernel takes beside A and B. ``name``: of the group of the user, one
        communication stream each. For ``KernelError``, with nothing sent, and the rest see
        ``overlap``.
        """
        device, n = a.device, b.shape[1]
        needed = self._needed(device, n, name)
        with torch.cuda.device(device):
            is_warm(needed)
            ctas = resident_ctas(device, sms_for_comm)
            staged, result = (self._empty(a, n, which) for which in (0, 1))
            if self.is_in_place:
                result = staged
            collectives = staged_collectives(self.parts, staged, result, self.sender, group)
            signals = Signals.zeroed(self.bands, self.kernel.tiles_n(n), device)
            c = staged.view(-1, n)
            overlap(
                lambda: self.kernel(
                    a, b, c, ctas=ctas, bands=signals.bands, counters=signals.counters, **operands
                ),
                signals,
                collectives,
                communication_stream(device, name),
                needed,
                max_polls=max_polls,
            )
        return result.view(-1, n)

    def _needed(self, device: torch.device, n: int, name: Hashable) -> frozenset[Hashable]:
        row_bytes = n * getattr(torch, self.kernel.spec.out).itemsize
        sizes = (part.computed.count * self.unit_rows[0] * row_bytes for part in self.parts)
        return warmth((self.kernel.spec, device), (name, self.sender.collective), sizes)

    def _empty(self, a: torch.Tensor, n: int, which: int) -> torch.Tensor:
        dtype = getattr(torch, self.kernel.spec.out)
        return a.new_empty(self.units[which], self.unit_rows[which], n, dtype=dtype)
