"""Collective, then GEMM: each group is computed when it has come, its own units before that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

from overlapc.runtime.chunked.computing import Computation
from overlapc.runtime.chunked.producers import Empty
from overlapc.runtime.cutting import columns
from overlapc.runtime.cutting.layout import Local, Part
from overlapc.runtime.programs.program import Program, Ref
from overlapc.runtime.ranks.sending import Sender, Work


@dataclass(frozen=True)
class Consumer:
    """A chain whose sizes and groups are known: it only has to be run."""

    program: Program
    sender: Sender
    local: Local | None
    parts: Sequence[Part]
    ranks: int
    by_columns: bool
    """Dimension 1 is gathered from the ranks."""
    results: Sequence[Empty]
    """What is kept."""
    settings: str = ""
    """Settings of Inductor, which compiles steps (`programs.settings`)."""

    def __call__(
        self, operands: Sequence[torch.Tensor], group: dist.ProcessGroup
    ) -> list[torch.Tensor]:
        """Return what is kept of all units, ready on the current stream."""
        mine, *others = operands
        # All are issued before anything is computed: the link is never left idle.
        in_flight = [(part, *self._start(part, mine, group)) for part in self.parts]
        kept = [mine.new_empty(shape, dtype=dtype) for shape, dtype in self.results]
        place = None if len(in_flight) > 1 or self.local else self.place_of_arrived
        given = self.computation.operands(others)
        first_group = 0 if self.local is None else 1
        if self.local is not None:
            self._compute(0, self.local.own.take(mine), next(given), kept)
        for index, (part, work, arrived, _) in enumerate(in_flight, first_group):
            work.wait()
            if self.by_columns:
                arrived = columns.unpack(arrived, self.ranks)
            first = part.landed.take(arrived)
            if place is not None:
                kept[place] = first
            self._compute(index, first, next(given), kept)
        return kept

    @cached_property
    def place_of_arrived(self) -> int | None:
        """Where among the results what has arrived is kept, if it is."""
        wanted = Ref("operand", 0)
        return self.program.kept.index(wanted) if wanted in self.program.kept else None

    @cached_property
    def computation(self) -> Computation:
        """What computes the rank's own units, and then the groups."""
        local = () if self.local is None else (self.local.computed,)
        units = (*local, *(part.computed for part in self.parts))
        return Computation(self.program, units, settings=self.settings)

    def _compute(
        self,
        index: int,
        first: torch.Tensor,
        others: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor],
    ) -> None:
        if first.shape[0]:
            self.computation(index, (first, *others), kept)

    def _start(
        self, part: Part, mine: torch.Tensor, group: dist.ProcessGroup
    ) -> tuple[Work, torch.Tensor, torch.Tensor]:
        """Send a group of what this rank has; returns the work and the buffers that it uses."""
        sent = part.sent.take(mine).contiguous()
        count = sum(part.receives) if part.sends else sent.shape[0]
        if self.sender.collective == "all_gather":
            count *= self.ranks
        arrived = mine.new_empty((count, *mine.shape[1:]))
        work = self.sender.start(group, arrived, sent, part.receives, part.sends)
        return work, arrived, sent
