"""A chain whose ranks send C in packed order, computed by the library, and whose graph reads it.

All ranks send tiles, whoever computes them. So a rank that has no kernel packs what the library
gave, and one whose graph reads C otherwise than it is sent copies what has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

from overlapc.codegen.packing import pack, unpack
from overlapc.planning.packed_order import PackedOrder
from overlapc.runtime.cutting.layout import Part
from overlapc.runtime.programs.execution import Function
from overlapc.runtime.programs.fusing import function
from overlapc.runtime.programs.program import Program
from overlapc.runtime.ranks.sending import Sender


@dataclass(frozen=True)
class PackedProducer:
    """Groups of tiles, which are sent one after another once all are computed."""

    program: Program
    sender: Sender
    parts: Sequence[Part]
    """A unit is a tile."""
    order: PackedOrder
    by_columns: bool = False
    """No columns are dealt out."""
    settings: str = ""
    """Settings of Inductor, which compiles steps (`programs.settings`)."""

    def __call__(
        self, operands: Sequence[torch.Tensor], group: dist.ProcessGroup
    ) -> list[torch.Tensor]:
        """Return the buffer and what is kept, ready on the current stream."""
        c, *kept = self._run(operands, ())
        buffer = pack(c, self.order)
        tiles = buffer.view(self.order.tiles, -1)
        sent = [part.computed.take(tiles) for part in self.parts]
        for work in [self.sender.start(group, its, its) for its in sent]:
            work.wait()
        # An op's results share no memory; only graphs that read rows keep any.
        return [buffer, *(value.clone(memory_format=torch.contiguous_format) for value in kept)]

    @cached_property
    def _run(self) -> Function:
        return function(self.program, settings=self.settings)


@dataclass(frozen=True)
class Reread:
    """From how C has come to how this rank's graph reads it, which other ranks' need not."""

    came: PackedOrder | None
    """None of rows, as the next one."""
    read: PackedOrder | None

    @classmethod
    def of(cls, came: PackedOrder | None, read: PackedOrder | None) -> Reread | None:
        """What copies C to where it is read; None where it lies there."""
        lies, wanted = (None if order is None else order.shape for order in (came, read))
        return None if lies == wanted else cls(came, read)

    def __call__(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return a chain's results, the first copied to where it is read."""
        c, *kept = results
        if self.came is not None:
            c = unpack(c, self.came)
        return [c if self.read is None else pack(c, self.read), *kept]
