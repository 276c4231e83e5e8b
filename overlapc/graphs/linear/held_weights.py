"""How a graph holds the weight of a linear layer, and the calls that widen and scale it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from overlapc.graphs.chains.bands import constant
from overlapc.graphs.sizes import is_static
from overlapc.graphs.values import value_of
from overlapc.runtime.programs.program import Ref, Step

aten = torch.ops.aten
CAST = torch.ops.prims.convert_element_type.default

TURNS = frozenset({aten.permute.default, aten.t.default, aten.transpose.int, aten.alias.default})
"""What may stand between a parameter and its GEMM."""
PARTS = frozenset(
    {
        aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default,
        aten.unbind.int, operator.getitem, aten.unsqueeze.default, aten.squeeze.default,
        aten.squeeze.dim, aten.squeeze.dims,
    }
)  # fmt: skip
"""What reads a part of a parameter where it is, and adds or drops dimensions of one."""
SHAPES = frozenset({aten.reshape.default, aten.view.default, aten._unsafe_view.default})
"""What puts a weight in groups, and ends that."""
MUL, SUB = aten.mul.Tensor, aten.sub.Tensor
NARROW = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2")
"""Dtypes of weights that are widened before they are multiplied."""
INTEGERS = (torch.int8, torch.uint8, torch.int32)
"""Of weights, their zero points, and their differences."""


@dataclass(frozen=True)
class Held:
    """How a weight lies in memory: as its GEMM reads it, or narrower."""

    node: fx.Node
    """What the op is given."""
    widening: tuple[fx.Node, ...] = ()
    """The calls between, each on what the one before gives; empty where the GEMM reads it."""

    @property
    def layout(self) -> str:
        """How it lies as [k, n]: "row", "col", or "strided"."""
        value = value_of(self.node)
        turns = sum(map(_transposes, self.widening))
        strides = (value.mT if turns % 2 else value).stride()[-2:]
        if not is_static(strides):
            return "strided"
        rows, columns = strides
        return "row" if columns == 1 else "col" if rows == 1 else "strided"

    @property
    def dtype(self) -> str:
        """Name of its dtype; empty where the GEMM reads it."""
        return dtype_of(self.node) if self.widening else ""

    @property
    def calls(self) -> set[fx.Node]:
        """Its widening, and what is done to scales and zero points before they meet it."""
        return {*self.widening, *(node for call in self.widening for node in self._side(call)[1])}

    @property
    def is_cut(self) -> bool:
        """Whether something else than a matrix is widened, or a part taken of what was widened."""
        given = (self.node, *self.widening)
        views = any(call.target in PARTS for call in self.widening)
        return bool(self.widening) and (views or len(value_of(given[-1]).shape) != 2)

    def steps(self, place: Any) -> list[Step]:
        """The calls as steps: of values each refers to the one before, of operands to
        ``place(node)``."""
        found: list[Step] = []
        its = place(self.node)
        for call in self.widening:
            beside, before = self._side(call)
            args = [
                its,
                *(constant(call, arg) for arg in call.args if not isinstance(arg, fx.Node)),
            ]
            if beside is not None:
                other = place(beside)
                for one in before:
                    if one.target is not aten.clone.default:
                        found.append(_on(one, other))
                        other = Ref("value", len(found) - 1)
                args.append(other)
            found.append(Step(str(call.target), tuple(args)))
            its = Ref("value", len(found) - 1)
        return found

    def _side(self, call: fx.Node) -> tuple[fx.Node | None, tuple[fx.Node, ...]]:
        """What meets the weight in a call: what an op is given of it, and the calls between."""
        known = {self.node, *self.widening}
        node = next((one for one in call.all_input_nodes if one not in known), None)
        return _unwidened(node) if node is not None else (None, ())


def _on(call: fx.Node, ref: Ref) -> Step:
    """A call as a step that takes a value in its tensor's place."""
    args = [ref if isinstance(arg, fx.Node) else constant(call, arg) for arg in call.args]
    return Step(str(call.target), tuple(args))


def _unwidened(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """A tensor before casts that round nothing, and before each element was repeated for a group
    of k, and those calls in program order."""
    calls: list[fx.Node] = []
    while True:
        if node.target is CAST and _rounds_nothing(node):
            more = [node]
        elif node.target in SHAPES:
            more = _repeats(node)
        else:
            more = []
        if not more:
            return node, tuple(reversed(calls))
        calls += more
        node = more[-1].all_input_nodes[0]


def _rounds_nothing(cast: fx.Node) -> bool:
    was, now = value_of(cast.all_input_nodes[0]).dtype, value_of(cast).dtype
    if was in (torch.int8, torch.uint8):
        return now in (torch.int32, torch.float32, torch.bfloat16, torch.float16)
    return now == torch.float32 and was in (torch.bfloat16, torch.float16)


def _repeats(view: fx.Node) -> list[fx.Node]:
    """The calls, last first, by which a view gives a matrix of which each row or column is there
    several times in a row; empty where it does not."""
    found = [view, *view.all_input_nodes]
    if found[-1].target is aten.clone.default:
        found += found[-1].all_input_nodes
    if found[-1].target is not aten.expand.default:
        return []
    given = found[-1].args[0]
    assert isinstance(given, fx.Node)
    was, wide, now = (tuple(value_of(node).shape) for node in (given, found[-1], view))
    if len(was) != 3 or len(now) != 2 or not is_static(wide):
        return []
    merged = [(wide[0] * wide[1], wide[2]), (wide[0], wide[1] * wide[2])]
    is_repeated = [was == (wide[0], 1, wide[2]), was == (wide[0], wide[1], 1)]
    return (
        found if now in [one for one, its in zip(merged, is_repeated, strict=True) if its] else []
    )


def held_as(weight: fx.Node) -> Held | None:
    """Return how the right operand of a GEMM is held; None where the graph computes it."""
    calls, node = list[fx.Node](), weight
    while node.op not in ("placeholder", "get_attr"):
        source = _source(node)
        if source is None or (node.target is MUL and any(call.target is SUB for call in calls)):
            return None
        calls.append(node)
        node = source
    if dtype_of(node) not in NARROW:
        return (
            Held(weight) if all(call.target in TURNS | PARTS | SHAPES for call in calls) else None
        )
    while calls and calls[-1].target in TURNS | PARTS:
        node = calls.pop()
    return Held(node, tuple(reversed(calls)))


def dtype_of(node: fx.Node) -> str:
    """Name of the dtype of a node's tensor."""
    return str(value_of(node).dtype).removeprefix("torch.")


def _source(node: fx.Node) -> fx.Node | None:
    """What a call widens, scales, regroups, turns, or subtracts a zero point from."""
    if node.target in TURNS | PARTS | SHAPES:
        return node.all_input_nodes[0]
    if node.target is CAST:
        (given,) = node.all_input_nodes
        is_cut = value_of(node).dtype in INTEGERS and value_of(given).dtype not in INTEGERS
        return None if is_cut else given
    if node.target in (MUL, SUB) and (_meets_itself(node) or dtype_of(node) in NARROW):
        return None  # in int8 it wraps around
    if node.target is SUB and not node.kwargs:
        one, other = node.args
        if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)):
            return None
        return one if _is_narrow(one) else None
    if node.target is MUL:
        return next((one for one in node.all_input_nodes if _is_narrow(one)), None)
    return None


def _meets_itself(node: fx.Node) -> bool:
    both = [_root(arg) for arg in node.args if isinstance(arg, fx.Node)]
    return len(both) == 2 and both[0] is both[1]


def _root(node: fx.Node) -> fx.Node:
    """What a chain of such calls begins with."""
    while node.op not in ("placeholder", "get_attr") and (source := _source(node)) is not None:
        node = source
    return node


def _is_narrow(node: fx.Node | None) -> bool:
    """Whether what a call gives is a weight that is held in a narrow dtype."""
    while node is not None and node.op not in ("placeholder", "get_attr"):
        node = _source(node)
    return node is not None and dtype_of(node) in NARROW


def _transposes(node: fx.Node) -> bool:
    if node.target is not aten.permute.default:
        return False
    order = cast("Sequence[int]", node.args[1])
    return [dim % 2 for dim in order] == [1, 0]
