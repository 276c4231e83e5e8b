"""Division by a root mean square, however it is spelled: rows get the root of their columns long.

``x * rsqrt(mean(x^2, -1) + eps)``; what is added makes them shorter. Divided by their lengths, as
in cosine attention, they get one long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.versions import Versions


def normalized_columns(versions: Versions, call: Call) -> int:
    """Return how many columns a product or quotient divides by their root mean square, or 0."""
    pairs = [(call.get("input"), call.get("other"))]
    if call.name == "mul":
        pairs.append(pairs[0][::-1])
    for rows, other in pairs:
        value = tensor_of(rows)
        node = versions.read(call.node, rows) if isinstance(rows, fx.Node) else None
        if node is None or value is None or not value.ndim or not isinstance(value.shape[-1], int):
            continue
        mean = _under_root(versions, call.node, other, is_inverse=call.name == "mul")
        if mean is not None and node is _squared_in(versions, *mean):
            return value.shape[-1]
    return 0


def is_of_length_one(versions: Versions, call: Call) -> bool:
    """Return whether a call divides rows by their lengths, or by more."""
    value = tensor_of(call.node)
    if value is None or call.in_place or not value.ndim:
        return False
    last = (-1, value.ndim - 1)
    if call.name == "normalize":
        return call.get("p", 2.0) == 2 and call.get("dim", 1) in last and call.get("out") is None
    if call.name != "div" or call.get("rounding_mode"):
        return False
    by = _call(versions, call.node, call.get("other"))
    if by is not None and _only_enlarges(versions, by):
        by = _call(versions, by.node, by.get("input"))
    rows = call.get("input")
    if by is None or by.name not in ("norm", "vector_norm") or not isinstance(rows, fx.Node):
        return False
    is_of_rows = versions.read(by.node, by.get("input")) is versions.read(call.node, rows)
    dim = by.get("dim")
    (dim,) = dim if isinstance(dim, list | tuple) and len(dim) == 1 else (dim,)
    is_length = by.get("p", 2) in (2, "fro", None) and dim in last and by.get("dtype") is None
    return is_of_rows and is_length and by.get("keepdim") is True


def _only_enlarges(versions: Versions, call: Call) -> bool:
    """Whether a call gives no less than its first operand."""
    if call.name in ("clamp", "clamp_min"):
        return call.get("max") is None
    value = number(versions, call.get("other")) if call.name == "add" else None
    return value is not None and value >= 0 and call.get("alpha", 1) == 1


def _call(versions: Versions, reader: fx.Node, source: Any) -> Call | None:
    node = versions.read(reader, source) if isinstance(source, fx.Node) else None
    call = versions.calls.get(node) if node is not None else None
    return None if call is None or call.in_place else call


def _under_root(
    versions: Versions, reader: fx.Node, source: Any, *, is_inverse: bool
) -> tuple[fx.Node, Any] | None:
    """Who reads what a (reciprocal) root is of, without what is added to it."""
    root = _call(versions, reader, source)
    if root is None:
        return None
    power = -0.5 if is_inverse else 0.5
    is_root = root.name == ("rsqrt" if is_inverse else "sqrt")
    if not is_root and not (root.name == "pow" and root.get("exponent") == power):
        return None
    added = _call(versions, root.node, root.get("input"))
    if added is None or added.name != "add":
        return root.node, root.get("input")
    for mean, eps in (("input", "other"), ("other", "input")):
        value = number(versions, added.get(eps))
        if value is not None and value >= 0 and added.get("alpha", 1) == 1:
            return added.node, added.get(mean)
    return None


def _squared_in(versions: Versions, reader: fx.Node, source: Any) -> fx.Node | None:
    """The node of whose rows the mean of squares is read."""
    mean = _call(versions, reader, source)
    value = tensor_of(mean.get("input")) if mean is not None else None
    if mean is None or mean.name != "mean" or value is None or mean.get("keepdim") is not True:
        return None
    dim = mean.get("dim")
    dims = list(dim) if isinstance(dim, list | tuple) else [dim]
    if dims not in ([-1], [value.ndim - 1]):
        return None
    square = _call(versions, mean.node, mean.get("input"))
    if square is None or value.dtype == torch.float16:
        return None  # small squares lose what they are in float16, and rows may get longer
    of = square.get("input")
    is_square = square.name == "square" or (square.name == "pow" and square.get("exponent") == 2)
    is_product = square.name == "mul" and square.get("other") is of
    if not is_square and not is_product:
        return None
    return versions.read(square.node, of) if isinstance(of, fx.Node) else None
