"""Boxes of rows and keys: where an index of numbers and slices writes, as booleans."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import fx

from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import Expression, expression
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.values import value_of

MADE = torch.Tensor.new_ones
"""The first call of what has nothing of its node but a device."""


def made_where(versions: Versions, product: fx.Node) -> Expression | None:
    """Return memory to make tensors beside scores of, which is not scores: of queries, or keys."""
    first = product.all_input_nodes[0]
    found = expression(versions, product, first, as_memory=True)
    return None if found is None else replace(found, calls=(), value=value_of(found.node))


def box(call: Call, made_of: Expression) -> Expression | None:
    """Return booleans, true in what ``x[index] = value`` writes, as they broadcast to ``x``.

    None where the index is not of whole numbers and slices of every element between two. They are
    made on the device of ``made_of``.
    """
    whole, index = tensor_of(call.get("input")), call.get("index")
    parts = list(index) if isinstance(index, tuple | list) else [index]
    if whole is None or sum(part is Ellipsis for part in parts) > 1:
        return None
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    at = parts.index(Ellipsis)
    parts[at : at + 1] = [slice(None)] * (whole.ndim - len(parts) + 1)
    ends = [_ends(part, size) for part, size in zip(parts, whole.shape, strict=False)]
    if len(ends) != whole.ndim or None in ends:
        return None
    sizes = tuple(end[1] - end[0] if end else 1 for end in ends)
    pads = [(end[0], end[2] - end[1]) if end else (0, 0) for end in ends]
    flat = tuple(pad for pair in reversed(pads) for pad in pair)
    found = made_of.then(MADE, sizes).then(torch.Tensor.bool)
    return found.then(F.pad, flat, "constant", False)


def _ends(part: object, size: int | torch.SymInt) -> tuple[int, ...] | None:
    """First, last and size of what one index takes of a dimension; empty where it is all."""
    if part == slice(None):
        return ()
    if not isinstance(size, int) or isinstance(part, bool):
        return None
    if isinstance(part, int):
        part = slice(part % size, part % size + 1)
    if not isinstance(part, slice):
        return None
    given = (part.start, part.stop, part.step)
    if not all(one is None or isinstance(one, int) for one in given):
        return None
    start, stop, step = part.indices(size)
    return (start, stop, size) if step == 1 and start < stop else None
