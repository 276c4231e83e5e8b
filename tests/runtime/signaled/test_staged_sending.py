"""Staged groups through real collectives of gloo, against one collective for everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from overlapc.runtime.cutting import columns
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.signaled.staged_sending import staged_collectives
from overlapc.runtime.signaled.staging import Staging

N, BLOCK_M = 12, 3
COUNTS = (3, 1, 4)
SIZES = ((0, 3, 7, 1), (4, 4, 0, 9), (1, 0, 0, 0), (8, 0, 3, 3))
"""Units from each rank to each; of the first groups rank 2 has none."""


def dealing(kind: str, me: int, outer: int, axis: int) -> Dealing:
    if kind == "uneven":
        receives = tuple(sends[me] for sends in SIZES)
        return Dealing("all_to_all", 0, sum(SIZES[me]), 4, me, 1, receives, SIZES[me])
    units = sum(COUNTS) * (1 if kind == "all_reduce" or axis else 4)
    return Dealing(kind, axis, units, 4, me, outer)


def staged_result(rank: int, kind: str, outer: int, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What groups give on this rank, and what it has to be."""
    deal = dealing(kind, rank, outer, axis)
    across = 4 if axis else 1
    parts = producer_parts(deal, COUNTS)
    torch.manual_seed(rank)
    c = torch.randn(deal.units, N, dtype=torch.float64)
    staged = torch.full_like(c, torch.nan)
    bands = Staging.of(parts).bands(BLOCK_M)
    for run in (run for runs in bands.runs for run in runs):
        staged[run.target : run.target + run.rows] = c[run.source : run.source + run.rows]
    result = staged
    if kind != "all_reduce":
        result = torch.full((deal.result_units, N // across), torch.nan, dtype=torch.float64)
    group: Any = dist.group.WORLD
    sender = Sender(deal.collective, "sum" if "reduce" in kind else "", in_stream=True)
    collectives = staged_collectives(parts, staged, result, sender, group, across)
    assert len(collectives) == len(bands.runs)
    for collective in collectives:
        collective()
    return result, whole(c, deal)


def whole(c: torch.Tensor, deal: Dealing) -> torch.Tensor:
    """One collective of torch.distributed on all of C."""
    if deal.collective == "all_reduce":
        dist.all_reduce(c)
        return c
    if deal.axis:
        c = columns.pack(c, deal.ranks)
    result = torch.empty((deal.result_units, *c.shape[1:]), dtype=c.dtype)
    if deal.collective == "reduce_scatter":
        # Scattered is the middle dimension of [outer, ranks, inner].
        if not deal.axis:
            outer, ranks, inner = deal.grid
            c = c.view(outer, ranks, inner, -1).transpose(0, 1).flatten(0, 2)
        dist.reduce_scatter_tensor(result, c.contiguous())
        return result
    dist.all_to_all_single(result, c, list(deal.receives) or None, list(deal.sends) or None)
    return result


@pytest.mark.parametrize(
    ("kind", "outer", "axis"),
    [
        ("all_reduce", 1, 0),
        ("reduce_scatter", 1, 0),
        ("reduce_scatter", 2, 0),
        ("reduce_scatter", 1, 1),
        ("all_to_all", 1, 0),
        ("all_to_all", 1, 1),
        ("uneven", 1, 0),
    ],
)
def test_groups_give_what_one_collective_gives(four_ranks, kind, outer, axis):
    for result, expected in four_ranks.run(staged_result, kind, outer, axis):
        torch.testing.assert_close(result, expected)
