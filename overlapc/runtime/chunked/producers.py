"""GEMM, then collective: each group is on its way while the next one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import torch
import torch.distributed as dist

from overlapc.runtime.chunked.computing import Computation, lengths, take_each
from overlapc.runtime.cutting import columns
from overlapc.runtime.cutting.layout import Part
from overlapc.runtime.programs.execution import writes
from overlapc.runtime.programs.program import Program
from overlapc.runtime.ranks.sending import Sender

Empty = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor to be made."""


@dataclass(frozen=True)
class Producer:
    """A chain whose sizes and groups are known: it only has to be run."""

    program: Program
    sent_rest: tuple[int, ...]
    """Shape of what is sent, without the units."""
    sender: Sender
    parts: Sequence[Part]
    ranks: int
    by_columns: bool
    """Dimension 1 is dealt out to the ranks."""
    results: Sequence[Empty]
    """What comes back from the collective, then what is kept."""
    settings: str = ""
    """Settings of Inductor, which compiles steps (`programs.settings`)."""

    def __call__(
        self, operands: Sequence[torch.Tensor], group: dist.ProcessGroup
    ) -> list[torch.Tensor]:
        """Return the collective's result and what is kept, ready on the current stream."""
        result, *kept = [operands[0].new_empty(shape, dtype=d) for shape, d in self.results]
        given = self.computation.operands(operands)
        groups = enumerate(zip(self.parts, given, self._landings(result), strict=False))
        in_flight = []
        for index, (part, taken, landing) in groups:
            sent = self._compute(index, part, taken, landing, kept)
            if landing is None:
                landing = result.new_empty((part.landed.count, *result.shape[1:]))
            work = self.sender.start(group, landing, sent, part.receives, part.sends)
            in_flight.append((work, part, landing, sent))
        for work, part, landing, _ in in_flight:
            work.wait()
            if part.landed.run is None:
                part.landed.put(result, landing)
        return [result, *kept]

    @cached_property
    def computation(self) -> Computation:
        """What computes the groups: to a given tensor where that saves a pass over memory.

        What an all-reduce sends becomes its result, so it has to be written there.
        """
        sent = self.program.sent
        assert sent is not None
        given = not self.by_columns and writes(self.program, sent)
        out = sent if given or self.sender.collective == "all_reduce" else None
        units = tuple(part.computed for part in self.parts)
        return Computation(self.program, units, out, self.settings)

    @cached_property
    def _lengths(self) -> list[int] | None:
        return lengths([part.landed for part in self.parts])

    def _landings(self, result: torch.Tensor) -> Iterable[torch.Tensor | None]:
        """Where each group is received: in its place, if that is contiguous."""
        if self._lengths is not None:
            return take_each((), result, self._lengths)
        if all(part.landed.run is None for part in self.parts):
            return repeat(None)
        return [None if p.landed.run is None else p.landed.take(result) for p in self.parts]

    def _compute(
        self,
        index: int,
        part: Part,
        operands: Sequence[torch.Tensor],
        landing: torch.Tensor | None,
        kept: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Compute a group; return what of it is sent, contiguous, rank by rank."""
        count, compute = part.computed.count, self.computation
        if self.sender.collective == "all_reduce":
            assert landing is not None
            if count:
                compute(index, operands, kept, landing)
            return landing
        dtype = self.results[0][1]
        if not count:
            width = self.results[0][0][1:]
            return operands[0].new_empty((0, *width), dtype=dtype)
        if compute.out is None:
            value = compute(index, operands, kept)[0]
            if self.by_columns:
                return columns.pack(value, self.ranks)
            return part.sent.take(value).contiguous()
        out = operands[0].new_empty((count, *self.sent_rest), dtype=dtype)
        compute(index, operands, kept, out)
        return part.sent.take(out)
