"""Keys and values that a cache holds in a narrow dtype: what widens them is their load.

That is a cast, and perhaps a product with a scale: one number, or one of each head of keys.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    Expression,
    expression,
    insertion,
    is_cast,
    is_same,
)
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.runtime.attention.kernels import NARROW

FURTHEST = 4
"""Calls that widen: chosen, a cast, a product and a cast are three."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Held:
    """One side as a cache holds it."""

    side: Expression
    """``[batch, heads, keys, dim]`` in the narrow dtype."""
    scale: Expression | float | None = None
    """What it is multiplied by: a number, or as many as ``side`` has heads, or one; None: it is
    not."""

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The tensors that it is read from."""
        return (self.side, self.scale) if isinstance(self.scale, Expression) else (self.side,)


@dataclass(frozen=True)
class Narrow:
    """Keys and values in one narrow dtype."""

    key: Held
    value: Held

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The tensors that both are read from."""
        return (*self.key.expressions, *self.value.expressions)

    def is_scaled_alike(self, versions: Versions) -> bool:
        """Return whether keys and values have the same scale, or both have none."""
        one, other = self.key.scale, self.value.scale
        if not isinstance(one, Expression) or not isinstance(other, Expression):
            return one == other
        writers = [versions.read(*scale.read[0]) for scale in (one, other)]
        is_same_read = len(one.read) == len(other.read) == 1 and writers[0] is writers[1]
        return is_same_read and (one.node, one.calls) == (other.node, other.calls)

    def emit_scales(self, graph: fx.Graph, like: fx.Node) -> list[fx.Node | None]:
        """Put both scales into the graph, of one size, float32; None twice where there are none."""
        scales = [self.key.scale, self.value.scale]
        if scales == [None, None]:
            return [None, None]
        sizes = [s.value.numel() for s in scales if isinstance(s, Expression)]
        size = max(sizes, default=1)
        return [_emitted(graph, scale, size, like, self.key.side) for scale in scales]


def _emitted(
    graph: fx.Graph, scale: Expression | float | None, size: int, like: fx.Node, side: Expression
) -> fx.Node:
    if isinstance(scale, Expression):
        flat = scale.then(torch.reshape, (-1,)).then(torch.Tensor.to, torch.float32)
        if flat.value.numel() != size:
            flat = flat.then(torch.broadcast_to, (size,))
        return flat.then(torch.Tensor.contiguous).emit(graph)
    named = {"dtype": torch.float32, "device": side.value.device}
    return add_call(graph, torch.full, ((size,), 1.0 if scale is None else scale), like, named)


def unwidened(versions: Versions, key: Expression, value: Expression) -> Narrow | None:
    """Return keys and values as they were before they were widened, both of one dtype; None where
    they were not.

    A cast counts as a view of what it widens; a product does not: whether somebody writes to what
    it is of, before the result is computed, is to be asked of ``Narrow.expressions``.
    """
    found = [_held(versions, side) for side in (key, value)]
    one, other = found
    if one is None or other is None or one.side.value.dtype != other.side.value.dtype:
        return None
    return Narrow(one, other)


def _held(versions: Versions, side: Expression) -> Held | None:
    if any(function is torch.mul for function, _ in side.calls):
        return None  # a number that what is wide is multiplied by
    node = versions.read(*side.read[0])
    scale: Expression | float | None = None
    inserted: list[object] = []
    for _ in range(FURTHEST):
        call = versions.calls.get(node) if node is not None else None
        if call is None or call.in_place:
            return None
        if is_cast(versions, call.node):
            source = call.get("input")
            base = expression(versions, call.node, source)
            if base is not None and str(base.value.dtype).removeprefix("torch.") in NARROW:
                for index in reversed(inserted):
                    base = base.then(operator.getitem, index)
                own = replace(base.replayed(side.calls), read=(*base.read, *side.read))
                return Held(own, scale)
        elif (index := insertion(versions, call.node)) is not None:
            inserted.append(index)
            (source,) = call.node.all_input_nodes
        elif call.name == "mul" and scale is None:
            factors = next(_factors(versions, call, side), None)
            if factors is None or (inserted and not _is_one(factors[1])):
                return None
            source, scale = factors
        else:
            return None
        value = tensor_of(source)
        if value is None or value.dtype not in DTYPES:
            return None
        node = versions.read(call.node, source)
    return None


def _is_one(scale: Expression | float) -> bool:
    return not isinstance(scale, Expression) or scale.value.numel() == 1


def _factors(
    versions: Versions, call: Call, side: Expression
) -> Iterator[tuple[fx.Node, Expression | float]]:
    """Both ways to read a product as one of a whole side and its scale, where they are."""
    pair, own = (call.get("input"), call.get("other")), tensor_of(call.node)
    for whole, factor in (pair, pair[::-1]):
        value = tensor_of(whole)
        if value is None or own is None or not is_same(tuple(value.shape), tuple(own.shape)):
            continue
        known = number(versions, factor)
        scale = known if known is not None else _scale(versions, call.node, factor, side)
        if scale is not None:
            yield whole, scale


def _scale(
    versions: Versions, reader: fx.Node, factor: object, side: Expression
) -> Expression | None:
    """A tensor that multiplies ``side``, before its calls, by one number or by one of each head."""
    found, dims = expression(versions, reader, factor), tensor_of(side.node)
    if found is None or dims is None or not found.value.is_floating_point():
        return None
    sizes = found.value.shape
    if any(not isinstance(size, int) for size in sizes):
        return None
    if found.value.numel() == 1:
        return found
    if any(function is not torch.permute for function, _ in side.calls) or dims.ndim != 4:
        return None
    wide = found
    for _ in range(4 - len(sizes)):
        wide = wide.then(torch.unsqueeze, 0)
    wide = wide.replayed(side.calls)
    return wide if is_same(wide.shape, (1, side.shape[1], 1, 1)) else None
