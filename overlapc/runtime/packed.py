"""A chain whose all-reduce gives C in packed order, computed by the library.

The graph reads C where its tiles lie, whoever computes them. So a rank that has no kernel packs
what the library gave: its peers send tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from overlapc.codegen.packing import pack
from overlapc.planning.packed_order import PackedOrder
from overlapc.runtime.execution import function
from overlapc.runtime.layout import Part
from overlapc.runtime.producers import Producer
from overlapc.runtime.program import Program
from overlapc.runtime.sending import Sender


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

    def __call__(
        self, operands: Sequence[torch.Tensor], group: dist.ProcessGroup
    ) -> list[torch.Tensor]:
        """Return the buffer, ready on the current stream."""
        (c,) = function(self.program)(operands, ())
        buffer = pack(c, self.order)
        tiles = buffer.view(self.order.tiles, -1)
        sent = [part.computed.take(tiles) for part in self.parts]
        for work in [self.sender.start(group, its, its) for its in sent]:
            work.wait()
        return [buffer]


@dataclass(frozen=True)
class PackedAfter:
    """Rows of C, which are packed when they have come: the ranks do not all send tiles."""

    run: Producer
    order: PackedOrder

    def __call__(
        self, operands: Sequence[torch.Tensor], group: dist.ProcessGroup
    ) -> list[torch.Tensor]:
        """Return the buffer, ready on the current stream."""
        (c,) = self.run(operands, group)
        return [pack(c, self.order)]
