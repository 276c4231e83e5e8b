"""Collectives that torch itself sends, as what their ranks have to agree on, and their verifier."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.origins import where
from overlapc.runtime.ranks import verifying

POINT_TO_POINT = ("isend", "irecv", "batch_p2p_ops")
"""Ops of c10d that not every rank of the group takes part in."""

IN_PLACE = ("all_reduce_", "all_reduce_coalesced_", "broadcast_")
"""Ops of c10d that write to what they send. Functionalization leaves none in a graph."""

SENDS, RECEIVES, GROUP = "input_split_sizes", "output_split_sizes", "group_name"
"""What c10d's schemas call these arguments."""


@dataclass(frozen=True)
class Call:
    """What a collective is given."""

    start: fx.Node
    text: str
    """The collective and its constants, as every rank spells them."""
    sent: tuple[fx.Node, ...]
    group: str
    receives: tuple[int | fx.Node, ...] = ()
    """Rows from each rank; of an all-to-all of rows only."""
    sends: tuple[int | fx.Node, ...] = ()
    """Rows to each rank; of an all-to-all of rows only."""


def read_call(start: fx.Node) -> Call | Refusal:
    """Read any op of c10d's that starts a collective."""
    op = start.target
    assert isinstance(op, torch._ops.OpOverload)
    name = op._schema.name.partition("::")[2]
    if name in POINT_TO_POINT:
        reason = "Not every rank of the group takes part in it."
        return Refusal(start, "point_to_point", reason)
    if name in IN_PLACE:
        return Refusal(start, "in_place", "It writes to what it sends, so it cannot send a copy.")
    given = dict(_arguments(start, op))
    group = given.pop(GROUP, None)
    if not isinstance(group, str):
        reason = "The process group is computed in the graph, and ranks meet under its name."
        return Refusal(start, "group_not_named", reason)
    receives, sends = tuple(given.pop(RECEIVES, ())), tuple(given.pop(SENDS, ()))
    # What it writes to belongs to this rank alone.
    given.pop("out", None)
    sent = tuple(node for value in given.values() for node in _nodes(value))
    constants = [str(value) for value in given.values() if not _nodes(value)]
    return Call(start, " ".join((f"torch's {name}", *constants)), sent, group, receives, sends)


def _arguments(node: fx.Node, op: torch._ops.OpOverload) -> Iterator[tuple[str, Any]]:
    names = [argument.name for argument in op._schema.arguments]
    yield from zip(names, node.args, strict=False)
    yield from node.kwargs.items()


def _nodes(value: object) -> tuple[fx.Node, ...]:
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(one for one in values if isinstance(one, fx.Node))


def add_verifier(graph: fx.Graph, call: Call, seconds: float, options: str, target: str) -> None:
    """Let a collective send what an op gives that compares its sizes across the ranks before."""
    start = call.start
    told = call.text, where(start), float(seconds), options, target, call.group
    args = list(call.sent), list(call.receives), list(call.sends), *told
    with graph.inserting_before(start):
        verifier = add_call(graph, verifying.OP, args, like=start)
        for index, sent in enumerate(call.sent):
            copy = add_call(graph, operator.getitem, (verifier, index), like=sent)
            start.replace_input_with(sent, copy)
