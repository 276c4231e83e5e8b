"""Which tensors of a graph share memory, which calls write to it, and how a copy is made."""

from __future__ import annotations

import torch
from torch import fx

from overlapc.graphs.adding import copy_facts
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.elementwise import REARRANGING
from overlapc.graphs.values import value_of

aten = torch.ops.aten


def mutates(node: fx.Node) -> bool:
    """Return whether a node writes into a tensor that was there before."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    return "mutation" in str(node.target)  # higher-order ops have no schema


def mutated_between(first: fx.Node, last: fx.Node) -> Refusal | None:
    """Return what writes into a tensor between two collectives, so that they are not one."""
    node = first
    while node is not last:
        if mutates(node):
            return Refusal(last, "mutation", f"between them {node.target} writes into a tensor")
        node = node.next
    return None


def returned_aliases(node: fx.Node) -> list[fx.Node]:
    """Return what the graph returns that may share memory with ``node``, in program order."""
    found, waiting, reached = [], [node], {node}
    while waiting:
        node = waiting.pop()
        if any(user.op == "output" for user in node.users):
            found.append(node)
        for user in node.users:
            if user not in reached and _may_alias(user):
                reached.add(user)
                waiting.append(user)
    return sorted(found)


def _may_alias(node: fx.Node) -> bool:
    if node.target in REARRANGING:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(returned.alias_info is not None for returned in node.target._schema.returns)


def clone(graph: fx.Graph, node: fx.Node, before: fx.Node) -> fx.Node:
    """Insert a contiguous copy of ``node``; Inductor drops it where the memory may be shared."""
    with graph.inserting_before(before):
        copy = graph.call_function(
            aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
        )
    copy_facts(node, copy)
    copy.meta["val"] = value_of(node).clone(memory_format=torch.contiguous_format)
    return copy
