"""Sums that collectives are terms of: one walk up from the last addition."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import fx

from overlapc.graphs.chains.packing import SPLITS
from overlapc.graphs.collectives import Collective, collective_starts, functional, read_collective
from overlapc.graphs.elementwise import CASTS, is_view
from overlapc.graphs.equality import are_alike
from overlapc.graphs.origins import where
from overlapc.graphs.sums.distributing import TURNS, Move, read_move
from overlapc.graphs.values import value_of

aten = torch.ops.aten

LINEAR = {
    "all_reduce": ("sum", "avg"),
    "reduce_scatter": ("sum", "avg"),
    "all_gather": ("",),
}
"""Collectives C with C(a) + C(b) = C(a + b), and the reductions for which that holds."""

ADDITIONS = (aten.add.Tensor, aten.sub.Tensor)

SCALINGS = (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)

PASSED = {
    *ADDITIONS,
    *SCALINGS,
    *CASTS,
    *TURNS,
    *SPLITS,
    aten.neg.default,
    aten.clone.default,
    aten.slice.Tensor,
    aten.cat.default,
    operator.getitem,
}
"""What a term may pass on its way into a sum, beside views."""

ROUNDED_FROM = (torch.float64, torch.float32)
ROUNDED_TO = (torch.float32, torch.bfloat16, torch.float16)
"""Casts that may come after a sum in place of before: they round, and do not cut or wrap."""

Number = int | float


@dataclass(frozen=True)
class Way:
    """What stands between a value and the sum's last addition."""

    add: fx.Node
    """The first addition on the way down, ..."""
    path: tuple[fx.Node, ...] = ()
    """... and what stands before it, from the value on; nothing else reads that."""
    factor: Number = 1
    """By which the sum has the value."""
    moves: tuple[Move, ...] = ()
    """What lays it out otherwise, or scales it by a tensor."""
    casts: tuple[torch.dtype, ...] = ()
    """The dtypes that it is rounded to."""
    refusal: tuple[str, str] | None = None
    """Why it is none of the sum's terms: a code, and what there is."""

    def up(self, node: fx.Node, factor: Number = 1, **more: Any) -> Way:
        """The way from the first argument of ``node``, which stands before the addition."""
        return replace(self, path=(node, *self.path), factor=self.factor * factor, **more)


@dataclass(frozen=True)
class Term:
    """A collective whose result is added to something."""

    collective: Collective
    way: Way

    @property
    def read(self) -> fx.Node:
        """What the first addition reads."""
        return (self.collective.wait, *self.way.path)[-1]


@dataclass
class Total:
    """A sum, and the collectives among its terms, in the order in which they start."""

    root: fx.Node
    """The last addition."""
    terms: list[Term] = field(default_factory=list)
    additions: list[fx.Node] = field(default_factory=list)
    """All of it, the last one first."""


def sums_of(graph: fx.Graph) -> list[fx.Node]:
    """Return the last addition of every sum of two collectives or more, in program order."""
    seen: set[fx.Node] = set()
    found: list[fx.Node] = []
    terms = _possible_terms(graph) if len(collective_starts(graph)) > 1 else set()
    for node in reversed(graph.nodes):
        if node in terms and is_addition(node) and node not in seen:
            total = _read(node, terms)
            seen.update(total.additions)
            if len(total.terms) > 1:
                found.append(node)
    return found[::-1]


def read_sum(root: fx.Node) -> Total:
    """Read the sum whose last addition is ``root``."""
    return _read(root, _possible_terms(root.graph))


def _possible_terms(graph: fx.Graph) -> set[fx.Node]:
    """Results of collectives, and what is made of them by what sums may be made by."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_passed = node.target in PASSED or is_view(node)
        if given_by(node) or (is_passed and any(one in found for one in node.all_input_nodes)):
            found.add(node)
    return found


def _read(root: fx.Node, terms: Set[fx.Node]) -> Total:
    total, waiting = Total(root), [(root, Way(root))]
    while waiting:
        node, way = waiting.pop()
        readers = [user for user in node.users if user is not way.add and user not in way.path]
        if node is not root and readers and way.refusal is None:
            way = replace(way, refusal=("other_users", _named_readers(readers)))
        if (collective := given_by(node)) is not None:
            total.terms.append(
                Term(collective, replace(way, refusal=_why_no_term(collective, way)))
            )
        elif is_addition(node) and way.refusal is None:
            total.additions.append(node)
            waiting += _addends(node, way)
        elif (before := _before(node, way, terms)) is not None:
            waiting.append(before)
    total.terms.sort(key=lambda term: term.collective.start)
    return total


def given_by(node: fx.Node) -> Collective | None:
    """The collective whose result a node is, if it is one."""
    if node.target is not functional.wait_tensor.default:
        return None
    collective = read_collective(node.all_input_nodes[0])
    return collective if isinstance(collective, Collective) else None


def _named_readers(readers: list[fx.Node]) -> str:
    names = ", ".join(str(user.target) for user in readers if user.op != "output")
    return f"it is read by {names}, too" if names else "it is returned, too"


def is_addition(node: fx.Node) -> bool:
    """Whether a node adds two tensors, or subtracts one."""
    if node.target not in ADDITIONS or not isinstance(node.kwargs.get("alpha", 1), int | float):
        return False
    left, right = node.args
    return isinstance(left, fx.Node) and isinstance(right, fx.Node) and left is not right


def factor_of(add: fx.Node) -> Number:
    """Return what an addition multiplies its second operand by."""
    sign = 1 if add.target is aten.add.Tensor else -1
    alpha = add.kwargs.get("alpha", 1)
    assert isinstance(alpha, int | float)
    return sign * alpha


def _addends(add: fx.Node, way: Way) -> Iterator[tuple[fx.Node, Way]]:
    for node, factor in zip(add.args, (1, factor_of(add)), strict=True):
        assert isinstance(node, fx.Node)
        more = {"path": (), "factor": way.factor * factor, "refusal": _unlike(node, add)}
        yield node, replace(way, add=add, **more)


def _unlike(node: fx.Node, add: fx.Node) -> tuple[str, str] | None:
    """Why an operand of an addition is no term of it."""
    if are_alike(node, add):
        return None
    one, other = value_of(node), value_of(add)
    if not isinstance(one, torch.Tensor) or one.dtype != other.dtype:
        was = str(getattr(one, "dtype", "a number")).removeprefix("torch.")
        return "other_dtype", f"it is {was}, and added up as {str(other.dtype)[6:]}"
    shape, wanted = (list(map(str, value.shape)) for value in (one, other))
    text = f"it is broadcast from [{', '.join(shape)}] to [{', '.join(wanted)}]"
    return "broadcast", text


def _before(node: fx.Node, way: Way, terms: Set[fx.Node]) -> tuple[fx.Node, Way] | None:
    """What a node only scales, casts or lays out otherwise, and the way from there."""
    if not is_view(node) and (move := read_move(node, terms)) is not None:
        path = (*move.between, node, *way.path)
        refusal = way.refusal or move.refusal
        return move.source, replace(way, path=path, moves=(move, *way.moves), refusal=refusal)
    source = node.args[0] if node.args else None
    if node.target in ADDITIONS and isinstance(node.args[1], fx.Node) and _is_number(source):
        refusal = ("no_sum", f"it is added to {source}, or subtracted from it, first")
        return node.args[1], way.up(node, refusal=way.refusal or refusal)
    if not isinstance(source, fx.Node):
        return None
    if node.target in CASTS and node.target is not aten.view.dtype:
        return source, _cast(node, source, way)
    if node.target in ADDITIONS and not isinstance(node.args[1], fx.Node):
        refusal = None if are_alike(source, node) else ("other_dtype", "it is another dtype then")
        if node.args[1] != 0:
            refusal = "no_sum", f"{node.args[1]} is added to it first"
        return source, way.up(node, refusal=way.refusal or refusal)
    if node.target is aten.neg.default:
        return source, way.up(node, -1)
    if node.target in SCALINGS and len(node.args) == 2 and not node.kwargs:
        factor = node.args[1]
        if not _is_number(factor):
            return None
        refusal = (
            None if are_alike(source, node) else ("other_dtype", "scaled, it is another dtype")
        )
        if "div" in str(node.target):
            factor = 1 / factor if factor else 0.0
        return source, way.up(node, factor, refusal=way.refusal or refusal)
    if is_view(node) or node.target is aten.clone.default:
        return source, way.up(node)
    return None


def _cast(node: fx.Node, source: fx.Node, way: Way) -> Way:
    """A sum may be rounded in place of its terms, and not be added up in a dtype that is less."""
    was, now = value_of(source).dtype, value_of(node).dtype
    is_rounded = was == now or (
        was in ROUNDED_FROM and now in ROUNDED_TO and now.itemsize < was.itemsize
    )
    names = [str(dtype).removeprefix("torch.") for dtype in (was, now)]
    said = "it is cast from {} to {} before, which is more than the sum would be in".format(*names)
    refusal = None if is_rounded else ("cast", said)
    return way.up(node, casts=(now, *way.casts), refusal=way.refusal or refusal)


def _is_number(value: object) -> TypeGuard[Number]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _why_no_term(collective: Collective, way: Way) -> tuple[str, str] | None:
    sent = value_of(collective.source)
    if collective.reduce not in LINEAR.get(collective.name, ()):
        if collective.name == "all_to_all":
            return "not_linear", "parts that are equal here need not be on other ranks"
        return "not_linear", f"{collective.reduce} of a sum is no sum of {collective.reduce}"
    if not isinstance(sent, torch.Tensor) or sent.dtype == torch.bool:
        return "dtype", "a sum of booleans is none"
    if collective.reduce == "avg" and not sent.dtype.is_floating_point:
        return "dtype", "every average of whole numbers is rounded"
    if collective.name == "reduce_scatter" and any(move.is_regrouping for move in way.moves):
        return "other_layout", "its part is put together otherwise, and other ranks' may be padded"
    if collective.asked:
        return "dynamic_shape", "it is asked for a size before it has come"
    return way.refusal


def named(collective: Collective) -> str:
    """Return how a reason calls a collective."""
    return f"the {collective.name} at {where(collective.start)}"
