"""What stands above and below a node of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import fx


def through(node: fx.Node, keep: Callable[[fx.Node], bool]) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """Walk up from ``node`` through nodes that ``keep`` accepts, by their first argument.

    Returns the first node that it does not accept, and those from it down to ``node``.
    """
    passed: list[fx.Node] = []
    while keep(node):
        passed.append(node)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node, tuple(reversed(passed))


def is_random(node: fx.Node) -> bool:
    """Return whether a node computes random numbers, or a few pointwise steps above it does."""
    waiting, seen = [node], 0
    while waiting and seen < 8:
        node, seen = waiting.pop(), seen + 1
        target = node.target
        if "random" in str(target) or "dropout" in str(target) or "bernoulli" in str(target):
            return True
        if isinstance(target, torch._ops.OpOverload):
            if torch.Tag.nondeterministic_seeded in target.tags:
                return True
            if torch.Tag.pointwise in target.tags or target.namespace == "prims":
                waiting.extend(node.all_input_nodes)
    return False


def descendants(nodes: Iterable[fx.Node], without: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """Return every node that depends on one of ``nodes`` but by ``without``, and these."""
    left_out = set(without)
    reached = set(nodes)
    waiting = list(reached)
    while waiting:
        for user in waiting.pop().users:
            if user not in reached and user not in left_out:
                reached.add(user)
                waiting.append(user)
    return reached


def is_ancestor(before: fx.Node, after: fx.Node) -> bool:
    """Return whether ``after`` depends on ``before`` through edges; ``before`` stands first."""
    between = set()
    node = after
    while node is not before:
        node = node.prev
        between.add(node)
    reached, waiting = set(), [after]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source is before:
                return True
            if source in between and source not in reached:
                reached.add(source)
                waiting.append(source)
    return False
