"""Keys and values whose heads were repeated for grouped queries, as what they were before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.products.above import scaled
from overlapc.graphs.attention.reading.spelling import Call, is_full_index, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    COPIES,
    EXPANSIONS,
    ORDERED,
    Expression,
    as_it_stands,
    expression,
    is_same,
)
from overlapc.graphs.attention.reading.versions import Versions

OF_ONE = (*EXPANSIONS, "repeat", "tile")
"""Calls by which one head is all of them; of several heads the last two give another order."""
VIEWS = ("view", "reshape")
"""Those by which torch's decompositions put batch and heads together."""


def unrepeated(versions: Versions, repeated: Expression) -> tuple[Expression, int]:
    """Return ``[batch, heads, ...]`` with each head once, and how often each was repeated.

    Heads are the second dimension of ``repeated``; it comes back with 1 where nothing is repeated.
    """
    if repeated.calls and repeated.calls[-1][0] is torch.broadcast_to:
        return _before_broadcast(repeated)
    whole, number = _before_scaling(versions, _in_four_dimensions(versions, repeated))
    once, groups = _taken_once(versions, whole)
    if groups == 1:
        return repeated, 1
    return (once if number == 1.0 else once.then(torch.mul, number)), groups


def is_broadcast(repeated: Expression) -> bool:
    """Return whether heads ``[batch, heads, ...]`` are one in memory, of which nobody makes copies:
    a product broadcasts it, or the graph expands it."""
    return is_same(repeated.value.stride()[1:2], (0,))


def _in_four_dimensions(versions: Versions, side: Expression) -> Expression:
    """A side that a product takes as ``[batch * heads, ...]`` as it was before that view: so
    torch's decompositions multiply."""
    *moves, last = side.calls or ((None, ()),)
    order = moves[0][1][0] if moves else (0, 1, 2)
    is_moved = [function for function, _ in moves] in ([], [torch.permute])
    own = tensor_of(side.node)
    if last[0] is not torch.unflatten or not is_moved or own is None or len(order) != 3:
        return side
    wanted, found = (*side.shape[:2], *own.shape[1:]), None
    node, read = versions.read(*side.read[0]), side.read
    while order[0] == 0 and node is not None and (call := versions.calls.get(node)) is not None:
        value, above = tensor_of(node), as_it_stands(versions, node, call.get("input"))
        is_view = call.name in (*VIEWS, *EXPANSIONS, *COPIES) and not call.in_place
        if not is_view or value is None or above is None or value.numel() != above.value.numel():
            break
        read = (*above.read, *read)
        if is_same(above.shape, wanted):
            found = replace(above, read=read)
        node = versions.read(*above.read[0])
    return side if found is None else found.permuted((0, *(dim + 1 for dim in order)))


def _before_scaling(versions: Versions, side: Expression) -> tuple[Expression, float]:
    """A side before it was multiplied by a number, and that number."""
    node = versions.read(*side.read[0])
    call = versions.calls.get(node) if node is not None else None
    is_moved = all(function is torch.permute for function, _ in side.calls)
    if call is None or call.name != "mul" or call.in_place or not is_moved:
        return side, 1.0
    source, number = scaled(versions, call)
    base = expression(versions, call.node, source)
    if base is None or base.value.dtype != side.value.dtype:
        return side, 1.0
    for _, (order,) in side.calls:
        base = base.permuted(order)
    return replace(base, read=(*base.read, *side.read)), number


def _taken_once(versions: Versions, repeated: Expression) -> tuple[Expression, int]:
    moves_only = all(function is torch.permute for function, _ in repeated.calls)
    if len(repeated.shape) != 4 or not moves_only or len(repeated.calls) > 1:
        return repeated, 1
    order = repeated.calls[-1][1][0] if repeated.calls else (0, 1, 2, 3)
    reader, source = repeated.read[0]
    node = versions.read(reader, source)
    call = versions.calls.get(node) if node is not None else None
    found = _source(versions, call, dim=order[1]) if call is not None else None
    if found is None:
        return repeated, 1
    base, groups = found
    moved = base.permuted(tuple(order))
    return replace(moved, read=(*moved.read, *repeated.read)), groups


def _before_broadcast(broadcast: Expression) -> tuple[Expression, int]:
    """The one head that a product of matrices broadcasts to all that queries have."""
    base = broadcast.before_last()
    times = _times(base.shape, broadcast.shape, dim=1)
    return (broadcast, 1) if times is None else (base, times)


def _times(one: tuple[Any, ...], several: tuple[Any, ...], dim: int) -> int | None:
    """How many slices along ``dim`` stand for one, all else being as it was; None where not so."""
    if not len(one) == len(several) == 4:
        return None
    times = several[dim]
    is_one = is_same(one[dim : dim + 1], (1,))
    is_rest_same = is_same((*one[:dim], times, *one[dim + 1 :]), several)
    return times if is_one and is_rest_same and isinstance(times, int) else None


def _source(versions: Versions, call: Call, dim: int) -> tuple[Expression, int] | None:
    """What a call repeats along ``dim``, each slice before the next one, and how often."""
    if call.in_place:
        return None
    if call.name in OF_ONE:
        return _before_copies(versions, call, dim)
    if call.name == "repeat_interleave":
        repeats, along = call.get("repeats"), call.get("dim")
        source = call.get("input")
        if not isinstance(repeats, int) or not isinstance(along, int) or along % 4 != dim:
            return None
        base = as_it_stands(versions, call.node, source)
        return None if base is None else (base, repeats)
    return _expanded(versions, call, dim)


def _before_copies(versions: Versions, call: Call, dim: int) -> tuple[Expression, int] | None:
    """The one slice that a call makes several of, and how many."""
    base, several = as_it_stands(versions, call.node, call.get("input")), tensor_of(call.node)
    if base is None or several is None:
        return None
    times = _times(base.shape, tuple(several.shape), dim)
    return None if times is None else (base, times)


def _expanded(versions: Versions, merge: Call, dim: int) -> tuple[Expression, int] | None:
    """``reshape(expand(unsqueeze(source, dim + 1)))`` in any spelling, told by its shapes."""
    expand = _input_call(versions, merge)
    if expand is not None and expand.name in COPIES and not expand.in_place:
        expand = _input_call(versions, expand)
    insert = _input_call(versions, expand) if expand is not None else None
    if expand is None or insert is None or expand.name not in EXPANSIONS:
        return None
    if any(one.in_place or one.name not in ORDERED for one in (merge, insert)):
        return None
    if insert.name == "getitem" and not is_full_index(insert.get("index")):
        return None
    source = insert.get("input")
    base = as_it_stands(versions, insert.node, source)
    shapes = [tensor_of(call.node) for call in (insert, expand, merge)]
    if base is None or len(base.shape) != 4 or any(s is None for s in shapes):
        return None
    inserted, expanded, merged = (tuple(value.shape) for value in shapes if value is not None)
    if len(expanded) != 5 or not isinstance(groups := expanded[dim + 1], int):
        return None
    before, heads, after = base.shape[:dim], base.shape[dim], base.shape[dim + 1 :]
    is_repeat = (
        is_same(inserted, (*before, heads, 1, *after))
        and is_same(expanded, (*before, heads, groups, *after))
        and is_same(merged, (*before, heads * groups, *after))
    )
    return (base, groups) if is_repeat else None


def _input_call(versions: Versions, call: Call) -> Call | None:
    source = call.get("input")
    node = versions.read(call.node, source) if isinstance(source, fx.Node) else None
    return versions.calls.get(node) if node is not None else None
