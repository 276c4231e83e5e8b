"""Nodes that are put into a graph, with what its other nodes know of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from overlapc.graphs.values import BEFORE_AUTOGRAD, VALUE_KEYS, fake_mode, value_of


def copy_facts(old: fx.Node, new: fx.Node) -> None:
    """Give ``new`` the value, source line and module path of ``old``."""
    new.meta = dict(old.meta)


def add_call(
    graph: fx.Graph,
    target: Any,
    args: tuple[Any, ...],
    like: fx.Node,
    kwargs: Mapping[str, Any] | None = None,
) -> fx.Node:
    """Add a call where the graph inserts now, with its value, and the origin of ``like``."""
    node = graph.call_function(target, args, dict(kwargs or {}))
    node.meta = {key: value for key, value in like.meta.items() if key not in VALUE_KEYS}
    values = fx.map_arg((args,), value_of)[0]
    with fake_mode(like):
        key = BEFORE_AUTOGRAD if BEFORE_AUTOGRAD in like.meta else "val"
        node.meta[key] = target(*values, **fx.map_arg(node.kwargs, value_of))
    return node
