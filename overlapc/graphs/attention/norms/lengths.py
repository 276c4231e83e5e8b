"""Rows of queries and keys that a norm makes of a length, whatever the inputs of the graph hold.

``x / rms(x) * gain`` is ``diag(gain) u`` with a ``u`` of at most ``sqrt(columns)``; a rotary
embedding turns pairs of columns, and leaves them as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.norms.rms import is_of_length_one, normalized_columns
from overlapc.graphs.attention.norms.rotations import read_rotation
from overlapc.graphs.attention.reading.constants import calls_above, number
from overlapc.graphs.attention.reading.spelling import Call, is_full_index, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    COPIES,
    ORDERED,
    Expression,
    is_cast,
    permutation,
)
from overlapc.graphs.attention.reading.versions import Versions

FURTHEST = 24
"""Calls between a norm and its product: chosen, twice what any model in the tests has."""

UNTOLD = "what turns them is no cosine and sine of one angle that the graph shows"
NO_GAIN = "what weighs their columns is no weight"
"""Why nothing is known of rows that a norm made."""


@dataclass(frozen=True)
class Normed:
    """Rows ``turned(diag(gain) u)``, ``u`` no longer than ``radius``."""

    radius: float
    gain: tuple[fx.Node, ...] = ()
    """The calls and inputs of the graph that give it, itself last; none: it is one. Of more
    columns than a row has, each row takes some."""
    is_turned: bool = False
    """Columns i and i + half of them are mixed, each pair as long as before."""
    eps: float = 0.0
    """Of the coarsest dtype that they were rounded to since."""
    is_cached: bool = False
    """Rows that a cache held before are among them: taken for granted is that the same norm made
    them, with the same weights."""

    def scaled(self, factor: float) -> Normed:
        """Return what it is multiplied by a number."""
        return replace(self, radius=self.radius * abs(factor))


@dataclass(frozen=True)
class Norms:
    """Of an attention."""

    query: Normed
    key: Normed

    def rounded(self, dtype: torch.dtype) -> Norms:
        """Return them of rows that are cast to a dtype."""
        eps = torch.finfo(dtype).eps
        return Norms(*(replace(side, eps=max(side.eps, eps)) for side in (self.query, self.key)))


def norms_of(versions: Versions, query: Expression, key: Expression) -> Norms | str:
    """Return what norms say of queries and keys ``[..., dim]``, or why they do not, as a clause;
    empty where there is no norm."""
    sides = []
    for name, side in (("queries", query), ("keys", key)):
        found = _side(versions, side)
        if isinstance(found, str):
            return f"norms of its {name} bound no score, for {found}" if found else ""
        sides.append(found)
    return Norms(*sides)


def _side(versions: Versions, side: Expression) -> Normed | str:
    dims = len(side.shape)
    for function, args in side.calls:
        if function is torch.mul:  # repeated heads, of which one was multiplied by a number
            return ""
        if function is torch.permute and args[0][-1] != len(args[0]) - 1:
            return ""
    columns = side.shape[-1]
    own = tensor_of(side.node)
    if not isinstance(columns, int) or dims < 2 or own is None or own.shape[-1] != columns:
        return ""
    return _rows(versions, *side.read[0], FURTHEST)


def _rows(versions: Versions, reader: fx.Node, source: Any, left: int) -> Normed | str:
    """What is known of the rows that a reader reads, or why nothing is."""
    node = versions.read(reader, source) if isinstance(source, fx.Node) else None
    call = versions.calls.get(node) if node is not None else None
    value = tensor_of(node)
    if call is None or value is None or left == 0 or not value.is_floating_point():
        return ""
    known = _given(versions, call, left)
    if isinstance(known, str):
        return known
    return replace(known, eps=max(known.eps, torch.finfo(value.dtype).eps))


def _given(versions: Versions, call: Call, left: int) -> Normed | str:
    if call.name in ("cat", "index_copy"):
        return _cached(versions, call, left)
    if _keeps_columns(versions, call):
        return _rows(versions, call.node, call.get("input"), left - 1)
    if call.name == "rms_norm":
        return _of_call(versions, call)
    if is_of_length_one(versions, call):
        return Normed(1.0)
    if call.name == "add":
        return _turned(versions, call, left)
    if call.name in ("mul", "div") and not call.in_place and not call.get("rounding_mode"):
        return _multiplied(versions, call, left)
    return ""


def _keeps_columns(versions: Versions, call: Call) -> bool:
    """Whether a call's rows are those of its input, or whole numbers of its heads' columns."""
    if call.in_place:
        return False
    if is_cast(versions, call.node) or call.name in COPIES:
        return True
    old, new = tensor_of(call.get("input")), tensor_of(call.node)
    if old is None or new is None or not new.ndim:
        return False
    if order := permutation(call.name, call.node, old.ndim):
        return order[-1] == old.ndim - 1
    if call.name not in ORDERED or (
        call.name == "getitem" and not is_full_index(call.get("index"))
    ):
        return False
    before, after = old.shape[-1], new.shape[-1]
    return isinstance(before, int) and isinstance(after, int) and after > 0 and before % after == 0


def _cached(versions: Versions, call: Call, left: int) -> Normed | str:
    """Rows that are put behind, or among, those that an input of the graph holds."""
    given, value = call.get("input"), tensor_of(call.node)
    parts = [given, call.get("source")] if call.name == "index_copy" else given
    if value is None or call.get("dim", 0) in (-1, value.ndim - 1) or len(parts) != 2:
        return ""
    old = versions.read(call.node, parts[0]) if isinstance(parts[0], fx.Node) else None
    known = _rows(versions, call.node, parts[1], left - 1)
    if old is None or old.op != "placeholder" or isinstance(known, str):
        return ""
    return replace(known, is_cached=True)


def _of_call(versions: Versions, call: Call) -> Normed | str:
    value, sizes = tensor_of(call.node), call.get("normalized_shape")
    sizes = [sizes] if isinstance(sizes, int) else sizes
    is_of_rows = isinstance(sizes, list | tuple) and len(sizes) == 1 and isinstance(sizes[0], int)
    if value is None or not is_of_rows or not sizes or not _is_no_less(call.get("eps"), 0.0):
        return ""
    unit = Normed(math.sqrt(sizes[0]))
    weight = call.get("weight")
    return unit if weight is None else _gained(versions, unit, call.node, weight)


def _is_no_less(value: object, least: float) -> bool:
    return value is None or (isinstance(value, int | float) and value >= least)


def _turned(versions: Versions, call: Call, left: int) -> Normed | str:
    found = read_rotation(versions, call)
    known = _rows(versions, found.reader, found.source, left - 1) if found else ""
    if found is None or isinstance(known, str):
        return known
    if found.factor is None:
        return UNTOLD
    return replace(known.scaled(found.factor), is_turned=True)


def _multiplied(versions: Versions, call: Call, left: int) -> Normed | str:
    one, other = call.get("input"), call.get("other")
    if columns := normalized_columns(versions, call):
        return Normed(math.sqrt(columns))
    if call.name == "div":
        value = number(versions, other)
        known = _rows(versions, call.node, one, left - 1) if value else ""
        return known if isinstance(known, str) or not value else known.scaled(1 / value)
    for rows, factor in ((one, other), (other, one)):
        value = number(versions, factor)
        known = _rows(versions, call.node, rows, left - 1)
        if not isinstance(known, Normed):
            if known:
                return known
            continue
        if value is not None:
            return known.scaled(value)
        return _gained(versions, known, call.node, factor)
    return ""


def _gained(versions: Versions, rows: Normed, reader: fx.Node, gain: Any) -> Normed | str:
    """Rows with each column weighed by a vector of the graph's inputs."""
    value = tensor_of(gain)
    node = versions.read(reader, gain) if isinstance(gain, fx.Node) else None
    if value is None or node is None or value.ndim != 1 or rows.gain or rows.is_turned:
        return NO_GAIN
    calls = calls_above(versions, node, of_inputs=True)
    return NO_GAIN if calls is None else replace(rows, gain=calls)
