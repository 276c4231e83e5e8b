"""What a reason calls the nodes of a user's graph: inputs by their names, calls by their lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import fx

from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.origins import source_line

MOST = 2
"""Nodes that are named of many: chosen."""


def named(versions: Versions, node: fx.Node) -> str:
    """Return what a user knows a node by: ``mask`` of an input, ``sum (model.py:12)`` of a call."""
    if node.op == "placeholder":
        name = getattr(getattr(node.meta.get("grapharg"), "source", None), "name", node.target)
        spelled = str(name() if callable(name) else name)  # a method before torch 2.13
        spelled = re.sub(r"\._(?:buffers|parameters)\['(\w+)'\]", r".\1", spelled)
        return re.sub(r"^L\['(\w+)'\]", r"\1", spelled)
    call = versions.calls.get(node)
    name = call.name if call is not None else str(getattr(node.target, "__name__", node.target))
    line = source_line(node)
    return f"{name} ({line})" if line else name


def all_named(versions: Versions, nodes: Sequence[fx.Node]) -> str:
    """Return the names of some nodes, and how many more there are."""
    names = [named(versions, node) for node in nodes]
    if len(names) > MOST + 1:
        names = [*names[:MOST], f"{len(names) - MOST} other calls"]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def weights_read(versions: Versions, node: fx.Node, readers: Sequence[fx.Node]) -> Refusal:
    """Refuse an attention whose weights some nodes read beside their product."""
    is_result = any(one.op == "output" for one in readers)
    who = "the caller" if is_result else all_named(versions, readers)
    reason = f"Attention weights are read by {who}, and torch's attention does not give them."
    return Refusal(node, "weights_read", reason)
