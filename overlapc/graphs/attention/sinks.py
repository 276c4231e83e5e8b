"""A column of scores that is no key, and the maximum that some subtract beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.constants import constant
from overlapc.graphs.attention.repeats import EXPANSIONS
from overlapc.graphs.attention.spelling import Call, is_full_index, tensor_of
from overlapc.graphs.attention.tensors import (
    COPIES,
    ORDERED,
    Expression,
    expression,
    is_cast,
    is_dim,
    is_kept,
    is_same,
)
from overlapc.graphs.attention.versions import Versions

MAXIMA = ("amax", "max")
ALIKE = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like")
"""Calls whose elements are all the same number."""


@dataclass(frozen=True)
class Sinks:
    """One score of each query head that takes part in the softmax and has no value."""

    tensor: Expression
    """``[heads]``"""
    factor: float = 1.0


def read_sinks(
    versions: Versions, call: Call, frame: tuple[Any, ...]
) -> tuple[fx.Node, Sinks] | None:
    """Read ``cat([scores, sinks], -1)``: the scores, and the sinks where each is one of a head."""
    parts, value = call.get("input"), tensor_of(call.node)
    dim = call.get("dim", 0)
    if not isinstance(parts, list | tuple) or len(parts) != 2 or value is None:
        return None
    if not isinstance(dim, int) or dim % value.ndim != value.ndim - 1:
        return None
    scores, sinks = parts
    column = tensor_of(sinks)
    if column is None or column.ndim != 4 or not is_same(tuple(column.shape[:2]), frame[:2]):
        return None
    if len(frame) != 2 or not is_same((column.shape[-1],), (1,)):
        return None
    if not _is_of_heads(versions, call.node, sinks):
        return None
    found = expression(versions, call.node, sinks)
    if found is None:
        return None
    for dim, place in ((3, 0), (2, 0), (0, 0)):
        found = found.then(torch.select, dim, place)
    return scores, Sinks(found.then(torch.Tensor.contiguous))


def _is_of_heads(versions: Versions, reader: fx.Node, column: fx.Node) -> bool:
    """Whether ``[batch, heads, rows, 1]`` repeats one number of each head."""
    node = versions.read(reader, column)
    while node is not None and node in versions.calls:
        call, value = versions.calls[node], tensor_of(node)
        if value is None or value.ndim != 4 or call.in_place:
            return False
        if call.name in ALIKE or is_same((value.shape[0], *value.shape[2:]), (1, 1, 1)):
            return True
        source = call.get("input")
        if call.name not in (*EXPANSIONS, *COPIES) and not is_cast(versions, node):
            break
        node = versions.read(node, source) if isinstance(source, fx.Node) else None
    known = constant(versions, node) if node is not None else None
    return known is not None and known.numel() > 0 and bool((known == known[:1, :, :1]).all())


def is_shift(
    versions: Versions, reader: fx.Node, scores: fx.Node, other: object, dim: int
) -> tuple[fx.Node, ...]:
    """The calls that make ``other`` the maximum of each row of ``scores``; none if it is not.

    Keys are its dimension ``dim``, from the end.
    """
    nodes = []
    node = versions.read(reader, other) if isinstance(other, fx.Node) else None
    value, own = tensor_of(other), tensor_of(scores)
    if value is None or own is None or not is_kept(value, own, dim):
        return ()
    while node is not None:
        nodes.append(node)
        call = versions.calls.get(node)
        if call is None or call.in_place:
            return ()
        source = call.get("input")
        if call.name in MAXIMA:
            is_own = versions.read(node, source) is versions.read(reader, scores)
            return tuple(nodes) if is_own and is_dim(own, call.get("dim"), dim) else ()
        if not _hands_on(versions, call) or not isinstance(source, fx.Node):
            return ()
        node = versions.read(node, source)
    return ()


def _hands_on(versions: Versions, call: Call) -> bool:
    """Whether a call gives a maximum as it stands, or the first of a pair."""
    if call.name == "getitem":
        is_pair = tensor_of(call.get("input")) is None
        return call.get("index") == 0 if is_pair else is_full_index(call.get("index"))
    passing = ("values", "detach", *ORDERED, *COPIES)
    return call.name in passing or is_cast(versions, call.node)
