"""A mask that shows each row the keys up to its own, as a length that a kernel reads by itself.

A cache of fixed size is longer than what stands in it. What of it rows see is told by a mask alone,
``key <= row + offset`` with an offset that is a tensor: the keys after the last row's own are seen
by nobody, and need not be read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.attention.masks.combined import Mask
from overlapc.graphs.attention.reading.constants import constant, number
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import COPIES, EXPANSIONS, exchanges_last, is_same
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias
from overlapc.planning.attention.fills import WEAKEST_FILL

TURNED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt"}
"""Comparisons by what they are with their sides exchanged."""
NEGATED = {"ge": "lt", "gt": "le", "le": "gt", "lt": "ge"}
"""By what they are where they do not hold; of integers, which are never NaN."""
SPREADING = (*EXPANSIONS, "unsqueeze", "getitem", "view", "reshape", "to", "bool", *COPIES)
"""Calls that a mask, or what is compared, may pass on its way: they repeat numbers or keep them."""
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Prefix:
    """Row r sees the keys up to ``positions[r]``, which are one more for each next row.

    In terms of ``AttentionSpec``: ``after=0``, ``align="bottom_right"``, and ``lengths`` that are
    the last position and one.
    """

    positions: fx.Node
    """An integer tensor of as many elements as rows, in their order, written to by nobody."""
    before: int | None
    """Keys that a row sees before its own; None: all."""
    says_all: bool = True
    """The mask says nothing else; if it does, such as padding, it stays beside the length."""

    def emit_lengths(self, graph: fx.Graph, batch: object) -> fx.Node:
        """Put ``int32[batch]`` where the graph inserts now: how many keys some row sees.

        ``int32[1]``, which stands for all alike, where the batch varies.
        """
        like = flat = self.positions
        value = tensor_of(like)
        if value is not None and value.ndim != 1:
            flat = add_call(graph, torch.flatten, (like,), like)
        last = add_call(graph, torch.select, (flat, 0, -1), like)
        length = add_call(graph, torch.add, (last, 1), like)
        narrow = add_call(graph, torch.Tensor.to, (length, torch.int32), like)
        count = batch if isinstance(batch, int) else 1
        spread = add_call(graph, torch.Tensor.expand, (narrow, count), like)
        return add_call(graph, torch.Tensor.contiguous, (spread,), like)


def prefix_of(versions: Versions, mask: Mask, rows: object, keys: object) -> Prefix | str:
    """Read what the mask of an attention says; a text as of ``read_prefix``."""
    parts = mask.parts
    if len(parts) != 1 or not isinstance(rows, int) or not isinstance(keys, int):
        return ""
    (part,) = parts
    source = part.tensor if isinstance(part, Bias) else part.condition
    leaves_out = not isinstance(part, Bias) or part.factor >= 1
    is_off = not isinstance(part, Bias) and not part.is_kept
    is_mask = isinstance(part, Bias) != (source.value.dtype == torch.bool)
    order = tuple(range(len(source.shape)))
    is_turned = source.calls == ((torch.permute, ((*order[:-2], *order[:-3:-1]),)),)
    is_alone = is_turned or not source.calls
    if not is_alone or not leaves_out or not is_mask or not source.is_unwritten(versions):
        return ""
    part = Part(source.node, rows, keys, -2 if is_turned else -1, is_off)
    found = read_prefix(versions, part)
    if isinstance(found, Prefix) and not found.says_all and mask.dead == "mean":
        return "a row that keeps no key is the mean of all, and padding may leave it none"
    return found


@dataclass(frozen=True)
class Part:
    """A mask, or a part of one: ``[..., rows, keys]``, booleans or numbers that are added."""

    node: fx.Node
    rows: int
    keys: int
    dim: int = -1
    """The dimension of keys: -1, or -2 where rows are the last one."""
    is_off: bool = False
    """Where it is true keys are left out."""

    def turned(self, node: fx.Node) -> Part:
        """Return another node as a part with rows and keys exchanged."""
        return replace(self, node=node, dim=-3 - self.dim)

    def is_along_keys(self, value: torch.Tensor) -> bool:
        """Return whether a tensor differs along keys alone, of as many elements."""
        return _is_along(value, self.dim, self.keys)

    def is_along_rows(self, value: torch.Tensor) -> bool:
        """Return whether a tensor differs along rows alone, of as many elements."""
        return _is_along(value, -3 - self.dim, self.rows)


def _is_along(value: torch.Tensor, dim: int, size: int) -> bool:
    at = value.ndim + dim
    is_one = size == 1 and is_same((value.numel(),), (1,))
    return is_one or (at >= 0 and is_same((value.shape[at], value.numel()), (size, size)))


def read_prefix(versions: Versions, mask: Part) -> Prefix | str:
    """Read a mask.

    Where it does not say which keys come before a row's own, why; empty where it does not look like
    a length at all.
    """
    kept = _kept(versions, mask)
    if kept is None:
        is_given = mask.node.op == "placeholder" and mask.rows == 1
        return "its mask is an input, and what it says is not known while compiling" * is_given
    parts = _conjuncts(versions, kept)
    conditions = [_condition(versions, part) for part in parts]
    ends = [found for found in conditions if isinstance(found, _End)]
    begins = [found for found in conditions if isinstance(found, _Begin)]
    if len(ends) == 1 and len(ends) + len(begins) < len(conditions):
        return Prefix(ends[0].positions, None, says_all=False)
    if len(ends) + len(begins) < len(conditions) or len(ends) != 1 or len(begins) > 1:
        is_moved = any(_compares_keys(versions, part) for part in parts)
        return "its mask compares them with other positions than those of the last rows" * is_moved
    if begins and begins[0].positions is not ends[0].positions:
        return "its window is about other positions than those that it ends at"
    return Prefix(ends[0].positions, begins[0].before if begins else None)


def _compares_keys(versions: Versions, part: Part) -> bool:
    """Whether it compares the numbers of keys with what is known when the graph runs."""
    node = part.node
    call = versions.calls.get(node)
    if call is None or call.name not in TURNED:
        return False
    sides = [_read(versions, node, side) for side in (call.get("input"), _other(call))]
    if not all(isinstance(side, fx.Node) for side in sides):
        return False
    known = [side is not None and constant(versions, side) is not None for side in sides]
    return any(side is not None and _is_keys(versions, side, part) for side in sides) and not all(
        known
    )


@dataclass(frozen=True)
class _End:
    """``key <= position``."""

    positions: fx.Node


@dataclass(frozen=True)
class _Begin:
    """``key >= position - before``."""

    positions: fx.Node
    before: int


def _kept(versions: Versions, mask: Part) -> Part | None:
    """The condition by which a mask keeps keys, or leaves them out."""
    value, call = tensor_of(mask.node), versions.calls.get(mask.node)
    if value is None or call is None:
        return None
    if value.dtype == torch.bool:
        return mask
    if call.name not in ("where", "masked_fill") or call.in_place:
        return None
    if call.name == "where":
        condition, sides = call.get("condition"), [call.get("input"), call.get("other")]
    else:
        condition, sides = call.get("mask"), [call.get("value"), call.get("input")]
    added = [_only_number(versions, mask.node, side) for side in sides]
    if not isinstance(condition, fx.Node) or 0 not in added:
        return None
    fill = added[1 - added.index(0)]
    is_off = fill is not None and fill <= WEAKEST_FILL
    return replace(mask, node=condition, is_off=added[1] == 0) if is_off else None


def _only_number(versions: Versions, reader: fx.Node, side: object) -> float | None:
    """The number that a side of a choice is, or that all elements of a constant are."""
    alone = number(versions, side)
    node = _read(versions, reader, side)
    value = constant(versions, node) if alone is None and node is not None else None
    if value is None or not value.numel():
        return alone
    once = value.flatten()[0]
    return float(once) if bool((value == once).all()) else None


NOT = ("invert", "logical_not", "bitwise_not")
AND = ("and_", "and", "logical_and", "bitwise_and", "mul")
OR = ("or_", "or", "logical_or", "bitwise_or")


def _conjuncts(versions: Versions, part: Part) -> list[Part]:
    """The conditions that all have to hold, without those that always do."""
    node = part.node
    call, value = versions.calls.get(node), tensor_of(node)
    if call is None or value is None or call.in_place:
        return [part]
    source = _read(versions, node, call.get("input"))
    is_bool = value.dtype == torch.bool
    if source is not None and exchanges_last(versions, node):
        return _conjuncts(versions, part.turned(source))
    if source is not None and is_bool and call.name in NOT:
        return _conjuncts(versions, replace(part, node=source, is_off=not part.is_off))
    spread = _spread(versions, call)
    if spread is not None and _keeps_places(call, spread):
        return _conjuncts(versions, replace(part, node=spread))
    other = _read(versions, node, _other(call))
    is_both = is_bool and call.name in (OR if part.is_off else AND)
    if source is not None and other is not None and is_both:
        sides = (replace(part, node=side) for side in (source, other))
        return [one for side in sides for one in _conjuncts(versions, side)]
    always = constant(versions, node)
    return [] if always is not None and bool((always != part.is_off).all()) else [part]


def _condition(versions: Versions, part: Part) -> _End | _Begin | None:
    """A comparison of keys with positions."""
    node = part.node
    call = versions.calls.get(node)
    if call is None or call.name not in TURNED or call.in_place:
        return None
    left, right = _read(versions, node, call.get("input")), _read(versions, node, _other(call))
    name = NEGATED[call.name] if part.is_off else call.name
    if left is not None and not _is_keys(versions, left, part):
        left, right, name = right, left, TURNED[name]
    if left is None or right is None or not _is_keys(versions, left, part):
        return None
    shift = 0 if name in ("le", "ge") else -1 if name == "lt" else 1
    found = _positions(versions, right, part)
    if found is None:
        return None
    positions, plus = found
    bound = plus + shift
    if name in ("le", "lt"):
        return _End(positions) if bound == 0 else None
    return _Begin(positions, -bound) if bound <= 0 else None


def _is_keys(versions: Versions, node: fx.Node, part: Part) -> bool:
    """Whether a tensor is the numbers of the keys, along their dimension."""
    value = constant(versions, node)
    if value is None or value.dtype.is_floating_point or not part.is_along_keys(value):
        return False
    return bool((value.flatten() == torch.arange(part.keys)).all())


def _positions(versions: Versions, node: fx.Node, part: Part) -> tuple[fx.Node, int] | None:
    """``(positions, plus)`` of a tensor along rows alone that is ``positions + plus``."""
    value = tensor_of(node)
    if value is None or not part.is_along_rows(value):
        return None
    return _counted(versions, node, part.rows)


def _counted(versions: Versions, node: fx.Node, rows: int) -> tuple[fx.Node, int] | None:
    call = versions.calls.get(node)
    # One position is in order, whatever it is.
    alone = (node, 0) if rows == 1 and _is_kept(versions, node, rows) else None
    if call is None or call.in_place:
        return alone
    source = _spread(versions, call)
    if source is not None:
        return _counted(versions, source, rows)
    if call.name not in ("add", "sub") or call.get("alpha", 1) != 1:
        return alone
    pair = call.get("input"), _other(call)
    plus = number(versions, pair[1])
    base = _read(versions, node, pair[0])
    if plus is not None and float(plus).is_integer() and base is not None:
        found = _counted(versions, base, rows)
        if found is not None:
            return found[0], found[1] + int(plus if call.name == "add" else -plus)
    is_count = call.name == "add" and _is_offset_count(versions, node, pair, rows)
    return (node, 0) if is_count else alone


def _is_offset_count(
    versions: Versions, node: fx.Node, pair: tuple[object, object], rows: int
) -> bool:
    """Whether a sum is ``0, 1, ..., rows - 1`` and one number, and keeps its value."""
    if not _is_kept(versions, node, rows):
        return False
    for count, offset in (pair, pair[::-1]):
        source = _read(versions, node, count)
        known = constant(versions, source) if source is not None else None
        other = tensor_of(offset)
        if known is None or other is None or other.numel() != 1:
            continue
        return bool(torch.equal(known.flatten(), torch.arange(rows, dtype=known.dtype)))
    return False


def _is_kept(versions: Versions, node: fx.Node, rows: int) -> bool:
    """Whether a node is an integer of each row that nothing in the graph writes to after it."""
    value = tensor_of(node)
    if value is None or value.dtype not in INTEGERS or not is_same((value.numel(),), (rows,)):
        return False
    end = next(iter(reversed(node.graph.nodes)))
    return not versions.changes(node, after=node, before=end)


def _spread(versions: Versions, call: Call) -> fx.Node | None:
    """What a call only repeats, regroups or copies, in its order."""
    source = _read(versions, call.node, call.get("input"))
    new, old = tensor_of(call.node), tensor_of(source)
    if call.in_place or call.name not in SPREADING or new is None or old is None:
        return None
    index = call.get("index", ())
    parts = index if isinstance(index, tuple | list) else (index,)
    is_ordered = all(part is None or part is Ellipsis or isinstance(part, slice) for part in parts)
    is_whole = is_same((new.numel(),), (old.numel(),)) or call.name in EXPANSIONS
    is_exact = new.dtype in (torch.bool, *INTEGERS)
    return source if is_ordered and is_whole and is_exact else None


def _keeps_places(call: Call, source: fx.Node) -> bool:
    """Whether the last two dimensions are what they were, or repeat what was one."""
    new, old = tensor_of(call.node), tensor_of(source)
    if new is None or old is None or old.ndim < 2:
        return False
    pairs = zip(new.shape[-2:], old.shape[-2:], strict=True)
    return all(is_same((a,), (b,)) or is_same((b,), (1,)) for a, b in pairs)


def _other(call: Call) -> object:
    return call.get("other", call.get("0"))  # comparisons have no names of parameters here


def _read(versions: Versions, reader: fx.Node, source: object) -> fx.Node | None:
    return versions.read(reader, source) if isinstance(source, fx.Node) else None
