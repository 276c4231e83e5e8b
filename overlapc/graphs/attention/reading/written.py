"""Scores that are written through a view of all of them."""

from __future__ import annotations

from torch import fx

from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import keeps_rows
from overlapc.graphs.attention.reading.versions import Versions


def read_rows(versions: Versions, reader: fx.Node, source: fx.Node) -> fx.Node | None:
    """Return what wrote what ``reader`` reads of ``source``, as ``Versions.read``.

    Where that was written through a view with the same last two dimensions, perhaps with other
    leading ones, it is that write.
    """
    seen = versions.read(reader, source)
    if seen is not None:
        return seen
    write = versions.last_write(source, reader)
    call = versions.calls.get(write) if write is not None else None
    if call is None or not (call.in_place or call.name == "setitem"):
        return None
    target = call.get("input")
    return write if _whole(versions, target) is _whole(versions, source) else None


def _whole(versions: Versions, node: fx.Node) -> fx.Node:
    """The tensor that a node is a view of, of all its elements and row by row."""
    while (call := versions.calls.get(node)) is not None:
        source = call.get("input")
        if not call.in_place and not (keeps_rows(versions, node) and _is_view(node, source)):
            break
        node = source
    return node


def _is_view(node: fx.Node, source: object) -> bool:
    one, other = tensor_of(node), tensor_of(source)
    if one is None or other is None:
        return False
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata
