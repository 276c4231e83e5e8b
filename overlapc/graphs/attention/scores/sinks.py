"""A score of each row that is no key's, and the maximum that some subtract beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.products.above import may_be_scores
from overlapc.graphs.attention.reading.constants import constant
from overlapc.graphs.attention.reading.spelling import Call, is_full_index, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    COPIES,
    EXPANSIONS,
    ORDERED,
    Expression,
    exchanges_last,
    expression,
    is_cast,
    is_dim,
    is_kept,
    is_same,
    is_same_tensor,
)
from overlapc.graphs.attention.reading.versions import Versions

MAXIMA = ("amax", "max")
ALIKE = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like")
"""Calls whose elements are all the same number."""


@dataclass(frozen=True)
class Sinks:
    """One score of each query head that takes part in the softmax and has no value."""

    tensor: Expression
    """``[heads]``"""
    is_first: bool = False
    """It stands before the keys, and not behind them."""
    factor: float = 1.0
    is_column: bool = True
    """It is a column of the weights, which somebody leaves out of them."""


@dataclass(frozen=True)
class EvenSinks:
    """Sinks that are all the same number."""

    scores: fx.Node
    value: float
    is_first: bool
    nodes: tuple[fx.Node, ...] = ()
    """Those of the calls that make them which read nothing of scores but a shape."""


def even_sinks(versions: Versions, call: Call, dim: int) -> EvenSinks | None:
    """Read scores beside which one column of a number is put; None where it is anything else."""
    if call.name == "pad":
        return _padded(call, dim)
    parts = call.get("input")
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        return None
    for scores, column in (parts, parts[::-1]):
        value, others = tensor_of(column), tensor_of(scores)
        if value is None or others is None or not is_kept(value, others, dim):
            continue
        node = versions.read(call.node, column)
        made = versions.calls.get(node) if node is not None else None
        number = of_all(made) if made is not None else None
        if made is None or number is None or not math.isfinite(number):
            continue
        return EvenSinks(scores, number, scores is not parts[0], _of_shape(versions, made))
    return None


def _of_shape(versions: Versions, made: Call) -> tuple[fx.Node, ...]:
    """The calls by which a tensor of one number has the shape of scores, or of a part of them."""
    nodes, source = [made.node], made.get("input")
    part = versions.calls.get(source) if isinstance(source, fx.Node) else None
    if part is not None and part.name == "getitem":
        nodes.append(part.node)
        source = part.get("input")
    seen = versions.read(nodes[-1], source) if isinstance(source, fx.Node) else None
    return tuple(nodes) if seen is not None and may_be_scores(versions, seen) else ()


def _padded(call: Call, dim: int) -> EvenSinks | None:
    sides, value = call.get("pad"), call.get("value", 0)
    is_constant = call.get("mode", "constant") == "constant"
    if dim != -1 or not is_constant or list(sides or ()) not in ([0, 1], [1, 0]):
        return None
    number = 0 if value is None else value
    if not isinstance(number, int | float):
        return None
    return EvenSinks(call.get("input"), float(number), is_first=sides[0] == 1)


def of_all(call: Call) -> float | None:
    """Return the number that a call gives in all elements, of whatever size; None where not so."""
    name = call.name.removeprefix("new_").removesuffix("_like")
    number = {"zeros": 0.0, "ones": 1.0, "full": call.get("fill_value")}.get(name)
    return None if call.in_place or not isinstance(number, int | float) else float(number)


def of_one_number(beside: Expression, heads: Any) -> Expression:
    """Return ones, float32[heads], on the device of another tensor."""
    value = tensor_of(beside.node)
    assert value is not None
    ones = Expression(beside.node, value, beside.read).then(torch.Tensor.new_ones, (heads,))
    return ones.then(torch.Tensor.float)


def read_sinks(
    versions: Versions, call: Call, frame: tuple[Any, ...], dim: int
) -> tuple[fx.Node, Sinks] | None:
    """Read ``cat([scores, sinks], dim)``, or the other way round: the scores, and the sinks where
    each is one of a head.

    ``dim`` is the dimension of keys, -1 or -2; heads are all of ``frame`` but a batch before them.
    """
    parts, value = call.get("input"), tensor_of(call.node)
    if not isinstance(parts, list | tuple) or len(parts) != 2 or value is None:
        return None
    own, batch = tuple(value.shape[:-2]), len(frame[:-1][:1])
    if not is_same(own, frame) and batch:
        return None
    for scores, sinks in (parts, parts[::-1]):
        column, others = tensor_of(sinks), tensor_of(scores)
        if column is None or others is None or not is_kept(column, others, dim):
            continue
        found = expression(versions, call.node, sinks)
        if found is None or not _is_of_heads(versions, call.node, sinks, batch):
            continue
        found = found.shaped(own, frame)
        for outer in (-1, -1, *(0,) * batch):
            found = found.then(torch.select, outer, 0)
        found = found.then(torch.flatten).then(torch.Tensor.contiguous)
        return scores, Sinks(found, is_first=scores is not parts[0])
    return None


def without_sinks(
    versions: Versions, node: fx.Node, reader: fx.Node, sinks: Sinks, dim: int
) -> tuple[fx.Node, ...]:
    """Return the calls from ``reader`` on that leave sinks out of weights ``node`` and nothing
    else, as a view of them; none where they do not."""
    calls = (reader,) if tensor_of(reader) is not None else (reader, *versions.readers[reader])
    old, new = tensor_of(node), tensor_of(calls[-1])
    if old is None or new is None or len(calls) > 2:
        return ()
    kept = Expression(node, old).then(torch.narrow, dim, int(sinks.is_first), old.shape[dim] - 1)
    return calls if is_same_tensor(kept, Expression(node, new)) else ()


def _is_of_heads(versions: Versions, reader: fx.Node, column: fx.Node, batch: int) -> bool:
    """Whether ``[batch, heads..., rows, keys]`` repeats one number of each head."""
    node, value = versions.read(reader, column), tensor_of(column)
    dims = value.ndim if value is not None else 0
    while node is not None:
        call, value = versions.calls.get(node), tensor_of(node)
        if value is None or value.ndim > dims or (call is not None and call.in_place):
            return False
        sizes = (*(1,) * (dims - value.ndim), *value.shape)
        if is_same((*sizes[:batch], *sizes[-2:]), (1,) * (batch + 2)):
            return True
        if call is None:
            break
        if call.name in ALIKE:
            return True
        source = call.get("input")
        passes = call.name in (*EXPANSIONS, *COPIES, "repeat") or exchanges_last(versions, node)
        if not passes and not is_cast(versions, node):
            break
        node = versions.read(node, source) if isinstance(source, fx.Node) else None
    known = constant(versions, node) if node is not None else None
    if known is None or not known.numel() or known.ndim != dims:
        return False
    once = known[:1] if batch else known
    return bool((known == once[..., :1, :1]).all())


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
