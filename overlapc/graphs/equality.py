"""Calls that give the same: equal collectives, and what only rearranges a value alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch
from torch import fx

from overlapc.graphs.collectives import Collective, Refusal
from overlapc.graphs.elementwise import REARRANGING
from overlapc.graphs.memory import mutated_between
from overlapc.graphs.sizes import same
from overlapc.graphs.values import value_of

aten = torch.ops.aten

PAD = aten.constant_pad_nd.default


def are_alike(one: fx.Node, other: fx.Node) -> bool:
    """Return whether two nodes give tensors of one shape, dtype and device, for every size."""
    left, right = value_of(one), value_of(other)
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return False
    if (left.dtype, left.device) != (right.dtype, right.device):
        return False
    return same(left.shape, right.shape)


def why_not_same(early: Collective, late: Collective) -> Refusal | None:
    """Return why the later of two collectives does not give what the earlier one gave."""
    if call_key(early.start) != call_key(late.start):
        return Refusal(late.start, "other_call", "they send different things")
    padded = early.source.target is PAD
    return mutated_between(early.source if padded else early.start, late.start)


def call_key(node: fx.Node) -> Hashable:
    """Return what is equal for nodes that call the same op on the same arguments.

    Only a rank whose shard is smaller than others pads it: arguments that are padded alike are the
    same, or the ranks would say otherwise of the same calls.
    """
    return node.target, _frozen(node.args), _frozen(node.kwargs)


def _frozen(value: object) -> Hashable:
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, fx.Node):
        return call_key(value) if value.target is PAD else value
    # 1, 1.0 and True are equal, and not the same argument.
    return type(value), repr(value)


def erase_unread(node: fx.Node) -> None:
    """Erase a node that nothing reads, and what it was rearranged from and nothing else reads."""
    while not node.users and (node.target in REARRANGING or node.target is PAD):
        sources = node.all_input_nodes
        node.graph.erase_node(node)
        for source in sources[1:]:
            erase_unread(source)
        if not sources:
            return
        node = sources[0]


def equal_rearrangements(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield (first, later) readers of ``node`` that only move its elements, and alike.

    The caller replaces the later one before it asks for the next.
    """
    seen: dict[Hashable, fx.Node] = {}
    for user in sorted(node.users):
        if user.target not in REARRANGING:
            continue
        first = seen.setdefault(call_key(user), user)
        if first is not user:
            yield first, user
    for user in seen.values():
        yield from equal_rearrangements(user)
