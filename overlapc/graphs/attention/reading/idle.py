"""Views and means that lead to no result: what models make of attention weights for callers who do
not ask for them. Who is one of them reads nothing."""

from __future__ import annotations

from torch import fx

from overlapc.graphs.attention.reading.spelling import read_call

IDLE = ("view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "reshape_as",
        "getitem", "transpose", "permute", "mT", "T", "t", "contiguous", "clone", "detach", "to",
        "type", "type_as", "float", "double", "half", "bfloat16", "expand", "broadcast_to",
        "expand_as", "mean", "sum")  # fmt: skip
"""Calls that do nothing but give a tensor."""


def is_idle(node: fx.Node) -> bool:
    """Return whether a call gives what no result of its graph is made of, and does nothing else."""
    call = read_call(node)
    if call is None or call.name not in IDLE or call.in_place or call.get("out") is not None:
        return False
    return all(map(is_idle, node.users))


def erase_idle(graph: fx.Graph, node: fx.Node) -> None:
    """Erase all readers of a node that lead to no result."""
    for reader in tuple(node.users):
        if reader in node.users and is_idle(reader):  # another reader may have been read by it
            erase_idle(graph, reader)
            graph.erase_node(reader)
