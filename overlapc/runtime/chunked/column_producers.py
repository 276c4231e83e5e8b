"""GEMM, then collective, by columns: some columns of all rows are on their way at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

from overlapc.runtime.chunked.producers import Empty
from overlapc.runtime.cutting.layout import Part
from overlapc.runtime.cutting.units import Range
from overlapc.runtime.programs.execution import Function
from overlapc.runtime.programs.fusing import function
from overlapc.runtime.programs.program import Program, Ref
from overlapc.runtime.ranks.sending import Sender


@dataclass(frozen=True)
class ColumnProducer:
    """A chain whose sizes and groups are known: it only has to be run."""

    program: Program
    cut: Sequence[bool] | None
    """Of which operands a group takes its columns, the last dimension, and not the whole. None
    where nothing can be computed by columns: they are sent when all is, for others send them."""
    sender: Sender
    part: Part
    """All units: what the one collective of the serial schedule sends, and each one here."""
    columns: Sequence[Range]
    """From and to which column each group goes; none is empty."""
    results: Sequence[Empty]
    """What comes back from the collective, then what is kept: matrices of all columns."""
    settings: str = ""
    """Settings of Inductor, which compiles steps (`programs.settings`)."""

    def __call__(
        self, operands: Sequence[torch.Tensor], group: dist.ProcessGroup
    ) -> list[torch.Tensor]:
        """Return the collective's result and what is kept, ready on the current stream."""
        result, *kept = [operands[0].new_empty(shape, dtype=d) for shape, d in self.results]
        part, in_flight = self.part, []
        anywhere = self.sender.puts_anywhere(group, result.device.type)
        computed = self._compute_all(operands, kept) if self.cut is None else None
        for start, end in self.columns:
            if computed is None:
                group_of_columns = self._compute(operands, start, end, kept)
            else:
                group_of_columns = computed[:, start:end].contiguous()
            sent = part.sent.take(group_of_columns)
            place = landing = result[:, start:end]
            if self.sender.collective == "all_reduce":
                landing = sent
            elif not anywhere:
                landing = result.new_empty(place.shape)
            work = self.sender.start(group, landing, sent, part.receives, part.sends)
            in_flight.append((work, place, landing, sent))
        for work, place, landing, _ in in_flight:
            work.wait()
            if landing is not place:
                place.copy_(landing)
        return [result, *kept]

    @cached_property
    def _written(self) -> tuple[Ref, ...]:
        """What the program writes to its place itself, each value once; first what is sent."""
        return tuple(dict.fromkeys(self.program.results))

    @cached_property
    def _run(self) -> Function:
        return function(self.program, self._written, tuple(self.cut or ()), self.settings)

    def _compute_all(
        self, operands: Sequence[torch.Tensor], kept: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        sent, *values = function(self.program, settings=self.settings)(operands, ())
        for place, value in zip(kept, values, strict=True):
            place.copy_(value)
        return sent

    def _compute(
        self, operands: Sequence[torch.Tensor], start: int, end: int, kept: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Compute a group and put what is kept in its place; return what is sent, contiguous."""
        program, dtype, cut = self.program, self.results[0][1], self.cut or ()
        given = [
            tensor.narrow(-1, start, end - start) if is_cut else tensor
            for tensor, is_cut in zip(operands, cut, strict=True)
        ]
        sent = operands[0].new_empty((self.part.computed.count, end - start), dtype=dtype)
        of_columns = [tensor[:, start:end] for tensor in kept]
        places = dict(zip(reversed(program.kept), reversed(of_columns), strict=True))
        places = {**places, program.results[0]: sent}
        self._run(given, [places[ref] for ref in self._written])
        for ref, place in zip(program.kept, of_columns, strict=True):
            if places[ref] is not place:
                place.copy_(places[ref])
        return sent
