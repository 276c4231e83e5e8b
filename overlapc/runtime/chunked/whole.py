"""A chain that is not cut: one computation and one collective, as a graph that is left alone has.

Where both take microseconds, so does walking over groups of which there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from overlapc.runtime.chunked.consumers import Consumer
from overlapc.runtime.chunked.producers import Producer
from overlapc.runtime.cutting.layout import Part
from overlapc.runtime.cutting.units import Units

Run = Callable[[Sequence[torch.Tensor], dist.ProcessGroup], list[torch.Tensor]]
"""From operands to results, as `Producer` and `Consumer` give them."""


def whole(chain: Producer | Consumer) -> Run | None:
    """Return what does the same as a chain of one group; None where units of it are moved, too."""
    if len(chain.parts) != 1 or chain.by_columns:
        return None
    (part,) = chain.parts
    if not all(_is_everything(units) for units in (part.computed, part.sent, part.landed)):
        return None
    if isinstance(chain, Consumer):
        return _consumer(chain, part) if chain.local is None else None
    return _producer(chain, part) if chain.computation.out else None


def _is_everything(units: Units) -> bool:
    return units.is_all and units.count > 0


def _producer(chain: Producer, part: Part) -> Run:
    is_in_place = chain.sender.collective == "all_reduce"
    (shape, dtype), *kept_like = chain.results
    sent_shape = (part.computed.count, *chain.sent_rest)
    (group_of_all,), compute = chain.computation.groups, chain.computation
    program, sender = group_of_all.run, chain.sender

    def run(operands: Sequence[torch.Tensor], group: dist.ProcessGroup) -> list[torch.Tensor]:
        new = operands[0].new_empty
        result = new(shape, dtype=dtype)
        sent = result if is_in_place else new(sent_shape, dtype=dtype)
        if not kept_like:
            program(operands, (sent,))
            sender.start(group, result, sent, part.receives, part.sends).wait()
            return [result]
        kept = [new(shape, dtype=d) for shape, d in kept_like]
        compute(0, operands, kept, sent)
        sender.start(group, result, sent, part.receives, part.sends).wait()
        return [result, *kept]

    return run


def _consumer(chain: Consumer, part: Part) -> Run:
    count = sum(part.receives) if part.sends else part.sent.count
    if chain.sender.collective == "all_gather":
        count *= chain.ranks
    compute, sender, place = chain.computation, chain.sender, chain.place_of_arrived
    results = tuple(chain.results)

    def run(operands: Sequence[torch.Tensor], group: dist.ProcessGroup) -> list[torch.Tensor]:
        mine, *others = operands
        new = mine.new_empty
        arrived = new((count, *mine.shape[1:]))
        work = sender.start(group, arrived, mine.contiguous(), part.receives, part.sends)
        kept = [new(shape, dtype=d) for shape, d in results]
        work.wait()
        if place is not None:
            kept[place] = arrived
        compute(0, (arrived, *others), kept)
        return kept

    return run
