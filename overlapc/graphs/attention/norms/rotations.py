"""Rotary embedding: pairs of a row's columns turned by an angle, which leaves rows as long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import Call, is_full_index, tensor_of
from overlapc.graphs.attention.reading.tensors import COPIES, ORDERED, is_cast
from overlapc.graphs.attention.reading.versions import Versions


@dataclass(frozen=True)
class Rotation:
    """``x * cos(a) + turned(x) * sin(a)``, columns i and i + half of them a pair of one angle."""

    reader: fx.Node
    source: Any
    """What ``reader`` reads of it is turned."""
    factor: float | None
    """Of cosine and sine; None where the graph does not show that they are of one angle."""


def read_rotation(versions: Versions, call: Call) -> Rotation | None:
    """Read a sum; None where nothing is turned."""
    if call.name != "add" or call.in_place or call.get("alpha", 1) != 1:
        return None
    sides = [_call(versions, call.node, call.get(name)) for name in ("input", "other")]
    if any(side is None or side.name != "mul" or side.in_place for side in sides):
        return None
    for plain, crossed in (sides, sides[::-1]):
        assert plain is not None
        assert crossed is not None
        for by_cosine, by_sine in _splits(plain, crossed):
            source, cosine = by_cosine
            turned, sine = by_sine
            node = _node(versions, plain.node, source)
            if node is None or node is not _turned(versions, crossed.node, turned):
                continue
            factor = _factor(versions, (plain.node, cosine), (crossed.node, sine))
            return Rotation(plain.node, source, factor)
    return None


def _splits(plain: Call, crossed: Call) -> list[tuple[tuple[Any, Any], tuple[Any, Any]]]:
    """Both products, each with its operands in either order."""
    one, other = ((c.get("input"), c.get("other")) for c in (plain, crossed))
    return [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]


def _node(versions: Versions, reader: fx.Node, source: Any) -> fx.Node | None:
    return versions.read(reader, source) if isinstance(source, fx.Node) else None


def _call(versions: Versions, reader: fx.Node, source: Any) -> Call | None:
    node = _node(versions, reader, source)
    return versions.calls.get(node) if node is not None else None


def _turned(versions: Versions, reader: fx.Node, source: Any) -> fx.Node | None:
    """The node of which ``cat((-x[..., half:], x[..., :half]), -1)`` is made."""
    call = _call(versions, reader, source)
    parts = call.get("input") if call is not None and call.name == "cat" else None
    if call is None or not isinstance(parts, list | tuple) or len(parts) != 2:
        return None
    if not _is_last(call, call.get("dim", 0)):
        return None
    negative = _call(versions, call.node, parts[0])
    if negative is None or negative.name != "neg" or negative.in_place:
        return None
    second = _half(versions, negative.node, negative.get("input"), which=1)
    first = _half(versions, call.node, parts[1], which=0)
    return first if first is second else None


def _half(versions: Versions, reader: fx.Node, source: Any, which: int) -> fx.Node | None:
    """The node whose first or second half of columns is read."""
    call = _call(versions, reader, source)
    if call is None or call.name != "getitem":
        return None
    index = call.get("index")
    if isinstance(index, int):
        call = _call(versions, call.node, call.get("input")) if index == which else None
        is_half = call is not None and _is_chunked_in_two(call)
    else:
        is_half = _takes_half(tensor_of(call.get("input")), index, which)
    return _node(versions, call.node, call.get("input")) if call is not None and is_half else None


def _takes_half(whole: torch.Tensor | None, index: Any, which: int) -> bool:
    if whole is None or not isinstance(index, tuple | list) or not index:
        return False
    half = index[-1]
    ends = (half.start, half.stop, half.step) if isinstance(half, slice) else (half,)
    if not isinstance(half, slice) or any(isinstance(end, fx.Node) for end in ends):
        return False
    columns = whole.shape[-1]
    is_all_rows = all(part is Ellipsis or part == slice(None) for part in index[:-1])
    is_last = Ellipsis in index[:-1] or len(index) == whole.ndim
    if not is_all_rows or not is_last or not isinstance(columns, int) or columns % 2:
        return False
    wanted = range(columns)[which * columns // 2 :][: columns // 2]
    return range(columns)[half] == wanted


def _is_chunked_in_two(call: Call) -> bool:
    value = tensor_of(call.get("input"))
    if call.name != "chunk" or value is None or call.get("chunks") != 2:
        return False
    columns = value.shape[-1]
    is_even = isinstance(columns, int) and columns % 2 == 0
    return is_even and call.get("dim", 0) in (-1, value.ndim - 1)


def _is_last(call: Call, dim: Any) -> bool:
    value = tensor_of(call.node)
    return value is not None and dim in (-1, value.ndim - 1)


def _factor(
    versions: Versions, cosine: tuple[fx.Node, Any], sine: tuple[fx.Node, Any]
) -> float | None:
    """The number that both are multiplied by; None unless both are of the same angles."""
    of_cosine, of_sine = _traced(versions, *cosine, "cos"), _traced(versions, *sine, "sin")
    if of_cosine is None or of_cosine != of_sine:
        return None
    angles, factor, _ = of_cosine
    call = versions.calls.get(angles)
    halves = call.get("input") if call is not None and call.name == "cat" else None
    if call is None or not isinstance(halves, list | tuple) or len(halves) != 2:
        return None
    one, other = (_node(versions, call.node, half) for half in halves)
    is_doubled = one is not None and one is other and _is_last(call, call.get("dim", 0))
    return factor if is_doubled else None


def _traced(
    versions: Versions, reader: fx.Node, source: Any, name: str
) -> tuple[fx.Node, float, tuple[Any, ...]] | None:
    """The angles that a cosine or sine is of, its factor, and the views on the way."""
    factor, views = 1.0, []
    call = _call(versions, reader, source)
    while call is not None and call.name != name:
        by = number(versions, call.get("other")) if call.name == "mul" else None
        if by is not None:
            factor *= by
        elif _is_view(call):
            value = tensor_of(call.node)
            views.append(None if value is None else tuple(value.shape))
        elif not is_cast(versions, call.node):
            return None
        call = _call(versions, call.node, call.get("input"))
    angles = _node(versions, call.node, call.get("input")) if call is not None else None
    return None if angles is None else (angles, factor, tuple(views))


def _is_view(call: Call) -> bool:
    """Whether a call keeps the order of elements, so that its sizes say all that it does."""
    if call.in_place or call.name not in (*ORDERED, *COPIES, "expand"):
        return False
    return call.name != "getitem" or is_full_index(call.get("index"))
