"""Masks that leave each row its own key, whatever the sizes are: no row is without a key then.

A mask is asked for the one element of row i that is its own key's, through the calls that made it.
Nothing is assumed of inputs, but that one element of them is equal to itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import _disable_current_modes

from overlapc.graphs.attention.reading.constants import constant
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import CASTS, COPIES, EXPANSIONS, is_same, order_of
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias, Fill
from overlapc.graphs.values import value_of
from overlapc.planning.attention.library_calls import FAINT

COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, name) for name in ("le", "lt", "ge", "gt", "eq", "ne")
}
BOTH = ("and_", "and", "logical_and", "bitwise_and")
EITHER = ("or_", "or", "logical_or", "bitwise_or")
NOT = ("invert", "logical_not", "bitwise_not")
INTEGERS = (torch.bool, torch.int32, torch.int64)
FILLED = {"ones": 1, "ones_like": 1, "new_ones": 1, "zeros": 0, "zeros_like": 0, "new_zeros": 0}


@dataclass(frozen=True)
class Element:
    """A number of row i: ``base + plus``."""

    base: str | tuple[fx.Node, tuple[Element, ...]] | None
    """"row": i; the name of another dimension: the place in it; or the element of a tensor at a
    place, which is not known; None: nothing."""
    plus: Any = 0
    """A number, or a size that varies."""


Place = tuple[Element, ...]


def keeps_own_keys(versions: Versions, parts: Sequence[Bias | Fill], rows: Any, keys: Any) -> bool:
    """Return whether masks over ``[..., rows, keys]`` scores leave each row a key of its own: that
    of its number, counted from the first keys or so that the last row has the last key."""
    if not statically_known_true(keys >= rows):
        return False
    shifts = [0] if is_same((rows,), (keys,)) else [0, keys - rows]
    return any(all(_keeps(versions, part, rows, keys, shift) for part in parts) for shift in shifts)


def _keeps(versions: Versions, part: Bias | Fill, rows: Any, keys: Any, shift: Any) -> bool:
    source = part.tensor if isinstance(part, Bias) else part.condition
    sizes = tuple(source.value.shape)
    # A floor of scores leaves what is above ``FAINT`` as it is.
    moves = [call for call in source.calls if call[0] is not torch.clamp]
    is_permuted = all(function is torch.permute for function, _ in moves)
    if not is_permuted or len(sizes) < 2 or not source.is_unwritten(versions):
        return False
    others = tuple(Element(f"{len(sizes) - dim}") for dim in range(len(sizes) - 2))
    place = (*others, Element("row"), Element("row", shift))
    broadcast = _broadcast(place, (*sizes[:-2], rows, keys), sizes)
    if broadcast is None:
        return False
    for _, (order,) in reversed(moves):
        broadcast = _unpermuted(broadcast, order)
    found = _Elements(versions).at(source.node, broadcast)
    if found is None or found.base is not None or isinstance(found.plus, torch.SymInt):
        return False
    if isinstance(part, Fill):
        return bool(found.plus) == part.is_kept
    return abs(found.plus * part.factor) < -FAINT


def _broadcast(place: Place, whole: Sequence[Any], sizes: Sequence[Any]) -> Place | None:
    """Where a tensor of ``sizes`` is read for a place in what it is broadcast to; None where it is
    not, as of more dimensions, which are summed over."""
    if len(sizes) > len(place):
        return None
    found = []
    for at, size, own in zip(place[len(place) - len(sizes) :], whole[len(place) - len(sizes) :],
                             sizes, strict=True):  # fmt: skip
        if is_same((own,), (1,)):
            found.append(Element(None))
        elif is_same((own,), (size,)):
            found.append(at)
        else:
            return None
    return tuple(found)


def _unpermuted(place: Place, order: Sequence[int]) -> Place:
    """Where a tensor is read for a place in what has its dimensions in another order."""
    return tuple(place[order.index(dim)] for dim in range(len(order)))


def _difference(one: Element, other: Element) -> Any:
    """``one - other``; None where that is not known."""
    return one.plus - other.plus if _is_same_base(one.base, other.base) else None


def _is_same_base(one: Any, other: Any) -> bool:
    if not isinstance(one, tuple) or not isinstance(other, tuple):
        return one == other
    return one[0] is other[0] and all(
        _is_same_base(a.base, b.base) and statically_known_true(a.plus == b.plus)
        for a, b in zip(one[1], other[1], strict=True)
    )


class _Elements:
    """Elements of tensors of one graph, by their places."""

    def __init__(self, versions: Versions) -> None:
        self.versions = versions

    def at(self, node: fx.Node, place: Place) -> Element | None:
        """Return the element of a tensor at a place; None where not even that place is known."""
        value, call = tensor_of(node), self.versions.calls.get(node)
        if value is None or len(place) != value.ndim:
            return None
        if node in self.versions.outer:
            versions, given = self.versions.outer[node]
            return _Elements(versions).at(given, place)
        found = self._one_number(node)
        if found is None and call is not None and not call.in_place:
            found = self._of_call(call, value, place)
        return _rounded(found, value.dtype) or Element((node, place))

    def _one_number(self, node: fx.Node) -> Element | None:
        """What all elements of a constant are."""
        known = constant(self.versions, node)
        if known is None or not known.numel() or known.dtype.is_complex:
            return None
        first = known.flatten()[0]
        return Element(None, first.item()) if bool((known == first).all()) else None

    def _of_call(self, call: Call, value: torch.Tensor, place: Place) -> Element | None:
        name, source = call.name, call.get("input")
        if name in FILLED:
            return Element(None, FILLED[name])
        if name in ("full", "full_like", "new_full"):
            return self._side(call, call.get("fill_value"), place)
        if name == "arange":
            return self._counted(call, place)
        if name in ("triu", "tril"):
            return self._triangle(call, place)
        if name in (*CASTS, *COPIES, *EXPANSIONS, "bool", "long"):
            return self._side(call, source, place)
        if name in ("view", "reshape"):
            return self._regrouped(call, value, place)
        if name in ("unsqueeze", "getitem"):
            return self._indexed(call, value, place)
        if order := order_of(self.versions, call.node):
            return self._of_source(call, _unpermuted(place, order))
        if name == "where":
            return self._chosen(call, call.get("condition"), source, call.get("other"), place)
        if name == "masked_fill":
            return self._chosen(call, call.get("mask"), call.get("value"), source, place)
        return self._computed(call, place)

    def _of_source(self, call: Call, place: Place) -> Element | None:
        source = call.get("input")
        node = self.versions.read(call.node, source) if isinstance(source, fx.Node) else None
        return None if node is None else self.at(node, place)

    def _side(self, call: Call, side: Any, place: Place) -> Element | None:
        """The element of an operand that is broadcast to the result."""
        if isinstance(side, int | float):
            return Element(None, side)
        if not isinstance(side, fx.Node):
            return None
        if isinstance(value_of(side), torch.SymInt):
            return Element(None, value_of(side))
        own, result = tensor_of(side), tensor_of(call.node)
        node = self.versions.read(call.node, side)
        if own is None or result is None or node is None:
            return None
        where = _broadcast(place, tuple(result.shape), tuple(own.shape))
        return None if where is None else self.at(node, where)

    def _counted(self, call: Call, place: Place) -> Element | None:
        """``arange(end)`` or ``arange(start, end)``."""
        args, named = call.node.args, {"start", "end", "step"} & set(call.node.kwargs)
        start = self._side(call, args[0], ()) if len(args) == 2 else Element(None)
        if named or len(args) > 2 or start is None:
            return None
        return Element(place[0].base, place[0].plus + start.plus)

    def _triangle(self, call: Call, place: Place) -> Element | None:
        """The diagonal that a key lies on is compared with the one that is given."""
        first = self._side(call, call.get("diagonal", call.get("0", 0)), ())
        column = _difference(place[-1], place[-2])
        if first is None or first.base is not None or column is None:
            return None
        sides = (column, first.plus) if call.name == "triu" else (first.plus, column)
        if statically_known_true(sides[0] >= sides[1]):
            return self._of_source(call, place)
        return Element(None) if statically_known_true(sides[0] < sides[1]) else None

    def _regrouped(self, call: Call, value: torch.Tensor, place: Place) -> Element | None:
        """Dimensions of one are added or taken away."""
        own = tensor_of(call.get("input"))
        if own is None or own.dtype != value.dtype:
            return None
        wide = [k for k, size in enumerate(value.shape) if not is_same((size,), (1,))]
        its = [k for k, size in enumerate(own.shape) if not is_same((size,), (1,))]
        if not is_same(tuple(value.shape[k] for k in wide), tuple(own.shape[k] for k in its)):
            return None
        where = dict(zip(its, (place[k] for k in wide), strict=True))
        return self._of_source(call, tuple(where.get(k, Element(None)) for k in range(own.ndim)))

    def _indexed(self, call: Call, value: torch.Tensor, place: Place) -> Element | None:
        own = tensor_of(call.get("input"))
        if own is None:
            return None
        if call.name == "unsqueeze":
            dim = call.get("dim", call.get("0"))
            kept = [at for k, at in enumerate(place) if k != dim % value.ndim]
            return self._of_source(call, tuple(kept))
        given = call.get("index")
        index = list(given) if isinstance(given, tuple | list) else [given]
        if index and all(tensor_of(one) is not None for one in index):
            return self._gathered(call, index, own, place)
        if Ellipsis in index:
            after = index.index(Ellipsis)
            missing = own.ndim - sum(one is not None and one is not Ellipsis for one in index)
            index[after : after + 1] = [slice(None)] * missing
        index += [slice(None)] * (own.ndim - sum(one is not None for one in index))
        is_kept = all(one is None or _begins_first(one) for one in index)
        kept = tuple(at for one, at in zip(index, place, strict=False) if one is not None)
        return self._of_source(call, kept) if is_kept else None

    def _gathered(
        self, call: Call, index: list[Any], own: torch.Tensor, place: Place
    ) -> Element | None:
        """``x[rows, columns]``, by places that are not counted from the end."""
        found = [self._side(call, one, place) for one in index]
        where = tuple(one for one in found if one is not None and _is_place(one))
        values = [tensor_of(one) for one in index]
        are_numbers = all(one is not None and one.dtype in INTEGERS[1:] for one in values)
        is_whole = len(where) == len(index) == own.ndim and are_numbers
        return self._of_source(call, where) if is_whole else None

    def _chosen(
        self, call: Call, condition: Any, one: Any, other: Any, place: Place
    ) -> Element | None:
        said = self._side(call, condition, place)
        if said is None or said.base is not None or not isinstance(said.plus, int | float):
            return None
        return self._side(call, one if said.plus else other, place)

    def _computed(self, call: Call, place: Place) -> Element | None:
        """Of elements of one or two operands."""
        name, value = call.name, tensor_of(call.get("input"))
        sides = [call.get("input"), call.get("other", call.get("0"))]
        one, other = (self._side(call, side, place) for side in sides)
        if name in NOT and one is not None and value is not None and value.dtype == torch.bool:
            return Element(None, not one.plus) if one.base is None else None
        if name in (*BOTH, *EITHER) and all(_is_bool(side) for side in sides):
            known = [bool(side.plus) for side in (one, other) if side and side.base is None]
            is_end = name in EITHER
            if is_end in known:
                return Element(None, is_end)
            return Element(None, not is_end) if len(known) == 2 else None
        if one is None or other is None:
            return None
        if name in COMPARED:
            return _compared(COMPARED[name], one, other, sides)
        if name in ("add", "sub") and call.get("alpha", 1) == 1 and call.get("out") is None:
            return _added(one, other, 1 if name == "add" else -1)
        if name == "mul" and one.base is None is other.base:
            return Element(None, one.plus * other.plus)
        return None


def _is_bool(side: Any) -> bool:
    value = tensor_of(side)
    return value is not None and value.dtype == torch.bool


def _begins_first(one: Any) -> bool:
    """Whether an index keeps the numbers of what it keeps."""
    return isinstance(one, slice) and one.start in (None, 0) and one.step in (None, 1)


def _is_place(one: Element) -> bool:
    return not isinstance(one.base, tuple) and statically_known_true(one.plus >= 0)


def _is_exact(number: Any) -> bool:
    return not isinstance(number, torch.SymInt) and number in (0, 1, -math.inf)


def _compared(
    function: Callable[[Any, Any], Any], one: Element, other: Element, sides: list[Any]
) -> Element | None:
    values = [tensor_of(side) for side in sides]
    are_whole = all(value is None or value.dtype in INTEGERS for value in values)
    are_exact = one.base is None and all(_is_exact(side.plus) for side in (one, other))
    if not _is_same_base(one.base, other.base) or not (are_whole or are_exact):
        return None  # an element that is NaN is no equal of its own
    if statically_known_true(function(one.plus, other.plus)):
        return Element(None, True)
    is_false = statically_known_true(torch.sym_not(function(one.plus, other.plus)))
    return Element(None, False) if is_false else None


def _added(one: Element, other: Element, sign: int) -> Element | None:
    if sign < 0 and one.base == other.base and isinstance(one.base, str):
        return Element(None, one.plus - other.plus)
    if other.base is None and not isinstance(one.base, tuple):
        return Element(one.base, one.plus + sign * other.plus)
    if sign > 0 and one.base is None and not isinstance(other.base, tuple):
        return Element(other.base, one.plus + other.plus)
    return None


def _rounded(found: Element | None, dtype: torch.dtype) -> Element | None:
    """An element as a dtype holds it; None where that is not known."""
    if found is None:
        return None
    if isinstance(found.base, tuple):
        own = tensor_of(found.base[0])
        return found if own is not None and own.dtype == dtype else None
    if isinstance(found.plus, torch.SymInt):
        return found if dtype == torch.int64 else None
    if not dtype.is_floating_point and not abs(found.plus) < 2**31:
        return None
    if found.base is not None:
        return found if dtype == torch.int64 else None
    with _disable_current_modes():
        return Element(None, torch.tensor(found.plus, dtype=torch.float64).to(dtype).item())
