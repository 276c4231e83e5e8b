"""A GEMM whose groups are sent while it runs, by any collective: sizes and groups are known."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from overlapc.codegen import Bands, Kernel
from overlapc.codegen.kernel import special
from overlapc.codegen.packing import Packing
from overlapc.errors import KernelError
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.tiles import SWEEP
from overlapc.runtime.cutting.layout import Part
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.signaled.signals import Signals
from overlapc.runtime.signaled.staged_sending import staged_collectives
from overlapc.runtime.signaled.staging import Staging
from overlapc.runtime.signaled.streams import (
    Collective,
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
    """Rows of C, and of the result; tiles where those make groups."""
    across: int
    """Ranks among which the columns of C are dealt out; 1 where rows are, or nothing is."""
    bands: Bands | Packing
    sweep: int = SWEEP
    """Tile rows that the kernel visits together."""

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        sender: Sender,
        parts: Sequence[Part],
        *,
        result_units: int,
        across: int = 1,
        first_run: int = 0,
        sweep: int = SWEEP,
    ) -> StagedGemm:
        """The GEMM for these groups; ``KernelError`` where they cannot be staged or announced.

        All ranks send groups in one order. Inside a group a rank may compute the runs in another
        order, from number ``first_run`` on (`Staging.bands`): what goes to itself comes first.
        """
        if not kernel.spec.signals:
            raise KernelError(
                "A GEMM whose groups are waited for has a kernel that signals.",
                where=str(kernel.spec),
                remedy="build the kernel of a spec with signals",
            )
        bands = Staging.of(parts).bands(kernel.spec.block_m, first_run)
        rows = sum(part.computed.count for part in parts)
        return cls(kernel, sender, tuple(parts), (rows, result_units), across, bands, sweep)

    @classmethod
    def packed(
        cls, kernel: Kernel, sender: Sender, parts: Sequence[Part], order: PackedOrder
    ) -> StagedGemm:
        """The GEMM for these groups of tiles, which the kernel stores and an all-reduce gives.

        ``KernelError`` for a kernel that does not pack so many.
        """
        counts = [part.computed.count for part in parts]
        sweep = order.tile.sweep
        groups = Packing.of(kernel.spec, order.m, order.n, counts, sweep)
        return cls(kernel, sender, tuple(parts), (order.tiles, order.tiles), 1, groups, sweep)

    def __call__(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        group: dist.ProcessGroup,
        sms_for_comm: int,
        *,
        name: Hashable = None,
        max_polls: int = 0,
        inputs: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Return the collective's result, [units, n] or the buffer of tiles, ready on the current
        stream.

        ``inputs``: what the epilogue reads. ``name``: of the communicator, which has one
        communication stream. For ``KernelError``, with nothing sent, and the rest see ``overlap``.
        """
        device, n = a.device, b.shape[1]
        needed = self._needed((a, b, *inputs), name)
        with torch.cuda.device(device):
            is_warm(needed)
            ctas = resident_ctas(device, sms_for_comm)
            c, result, collectives, signals = self._memory(a, n, group)
            stored = c.view(-1) if isinstance(self.bands, Packing) else c
            overlap(
                lambda: self.kernel(
                    a, b, stored, ctas=ctas, sweep=self.sweep, inputs=inputs,
                    bands=signals.bands, counters=signals.counters,
                ),
                signals,
                collectives,
                communication_stream(device, name),
                needed,
                max_polls=max_polls,
            )  # fmt: skip
        return result.view(-1) if isinstance(self.bands, Packing) else result

    def _memory(
        self, a: torch.Tensor, n: int, group: dist.ProcessGroup
    ) -> tuple[torch.Tensor, torch.Tensor, list[Collective], Signals]:
        """What the GEMM writes, what the collectives give, they, and the counters: all memory."""
        dtype = getattr(torch, self.kernel.spec.out)
        try:
            c = a.new_empty(self.units[0], self._width(n), dtype=dtype)
            result = c
            if self.sender.collective != "all_reduce":
                result = a.new_empty(self.units[1], n // self.across, dtype=dtype)
            calls = staged_collectives(self.parts, c, result, self.sender, group, self.across)
            signals = Signals.zeroed(self.bands, self.kernel.tiles_n(n), a.device)
        except torch.OutOfMemoryError as error:
            raise KernelError(
                f"There is no memory to stage the GEMM in: {error}",
                where=f"{self.units[0]}x{n} {self.kernel.spec.out}",
                remedy="use the chunked schedule, which holds one group at a time",
            ) from error
        return c, result, calls, signals

    def _needed(self, operands: Sequence[torch.Tensor], name: Hashable) -> frozenset[Hashable]:
        """What has to be loaded: the kernel, as Triton compiles it for A, B and inputs like these,
        and what sends its groups, which is another function for each dtype and reduction."""
        a, b = operands[:2]
        numbers = [a.shape[1], b.shape[1]]
        for tensor in operands:
            numbers += *tensor.stride(), tensor.data_ptr()
        kernel = self.kernel.spec, a.device, special(numbers)
        unit_bytes = self._width(b.shape[1]) * getattr(torch, self.kernel.spec.out).itemsize
        sent = (part.computed.count * unit_bytes for part in self.parts)
        how = self.sender.collective, self.sender.reduce, self.kernel.spec.out, self.across
        return warmth(kernel, (name, *how), sent)

    def _width(self, n: int) -> int:
        """Elements of a unit of C."""
        return self.bands.order.tile.elements if isinstance(self.bands, Packing) else n
