"""The collectives of a staged GEMM: one a group, from its range of the staging buffer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist

from overlapc.runtime.cutting import columns
from overlapc.runtime.cutting.layout import Part
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.signaled.staging import consecutive
from overlapc.runtime.signaled.streams import Collective


def staged_collectives(
    parts: Sequence[Part],
    staged: torch.Tensor,
    result: torch.Tensor,
    sender: Sender,
    group: dist.ProcessGroup,
    across: int = 1,
) -> list[Collective]:
    """What to call for every group that is announced, on a stream that has waited for it.

    ``staged[rows, n]`` is in the order of ``Staging.of(parts)``, ``result[units, n]`` in PyTorch's
    own, and both are contiguous; of an all-reduce they are one tensor. Where the columns are dealt
    out to ``across`` ranks, ``result`` has n / across of them, and a call first packs its group
    rank after rank: one pass over it.

    Memory is allocated now, none by the calls. What is sent is what ``Producer`` sends for these
    parts: a rank that computes by other means meets these collectives. Those of groups without rows
    here, which no kernel announces, are called before the next group's, or after the last.
    """
    ranges = consecutive(0, [part.computed.count for part in parts])
    calls: list[list[Collective]] = [[]]
    for part, rows in zip(parts, ranges, strict=True):
        landing = _landing(part, result)
        sent = staged[rows]
        if across > 1:
            packed = sent.new_empty((across * sent.shape[0], sent.shape[1] // across))
            calls[-1].append(partial(_pack, sent, packed, across))
            sent = packed
        calls[-1].append(_collective(part, sent, landing, result, sender, group))
        if part.computed.count:
            calls.append([])
    *announced, left = calls
    if announced:
        announced[-1] += left
    return [partial(_all, its) for its in announced]


def _all(calls: Sequence[Collective]) -> None:
    for call in calls:
        call()


def _pack(band: torch.Tensor, packed: torch.Tensor, across: int) -> None:
    packed.view(across, *band.shape[:1], -1).copy_(columns.parts(band, across))


def _landing(part: Part, result: torch.Tensor) -> torch.Tensor:
    """Where a group is received: in its place, if that is one range."""
    if part.landed.run is not None:
        return part.landed.take(result)
    return result.new_empty((part.landed.count, *result.shape[1:]))


def _collective(
    part: Part,
    sent: torch.Tensor,
    landing: torch.Tensor,
    result: torch.Tensor,
    sender: Sender,
    group: dist.ProcessGroup,
) -> Collective:
    def call() -> None:
        sender.start(group, landing, sent, part.receives, part.sends).wait()
        if part.landed.run is None:
            part.landed.put(result, landing)

    return call
