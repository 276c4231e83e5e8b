"""How a graph holds the weight of a linear layer, and the calls that widen and scale it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from overlapc.graphs.bands import constant, is_static
from overlapc.graphs.nodes import value_of
from overlapc.runtime.program import Ref, Step

aten = torch.ops.aten
CAST = torch.ops.prims.convert_element_type.default

TURNS = frozenset({aten.permute.default, aten.t.default, aten.transpose.int, aten.alias.default})
"""What may stand between a parameter and its GEMM."""
SHAPES = frozenset({aten.reshape.default, aten.view.default, aten._unsafe_view.default})
"""What puts a weight in groups, and ends that."""
NARROW = ("int8", "float8_e4m3fn", "float8_e5m2")
"""Dtypes of weights that are widened before they are multiplied."""


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
        strides = value.t().stride() if turns % 2 else value.stride()
        if not is_static(strides):
            return "strided"
        rows, columns = strides
        return "row" if columns == 1 else "col" if rows == 1 else "strided"

    @property
    def dtype(self) -> str:
        """Name of its dtype; empty where the GEMM reads it."""
        return dtype_of(self.node) if self.widening else ""

    def scale(self, call: fx.Node) -> fx.Node | None:
        """What a call of its widening multiplies it by."""
        known = {self.node, *self.widening}
        return next((node for node in call.all_input_nodes if node not in known), None)

    def steps(self, place: Any) -> list[Step]:
        """The calls as steps: of values each refers to the one before, of operands to
        ``place(node)``."""
        found: list[Step] = []
        for call in self.widening:
            before = Ref("value", len(found) - 1) if found else place(self.node)
            its = {self.widening[len(found) - 1] if found else self.node: before}
            args = [_argument(call, arg, its, place) for arg in call.args]
            found.append(Step(str(call.target), tuple(args)))
        return found


def _argument(call: fx.Node, arg: Any, its: dict[fx.Node, Ref], place: Any) -> Any:
    if isinstance(arg, fx.Node):
        return its[arg] if arg in its else place(arg)
    return constant(call, arg)


def held_as(weight: fx.Node) -> Held | None:
    """Return how the right operand of a GEMM is held; None where the graph computes it."""
    calls, node = list[fx.Node](), weight
    while node.op not in ("placeholder", "get_attr"):
        source = _source(node)
        if source is None:
            return None
        calls.append(node)
        node = source
    if dtype_of(node) not in NARROW:
        return Held(weight) if all(call.target in TURNS for call in calls) else None
    while calls and calls[-1].target in TURNS:
        node = calls.pop()
    return Held(node, tuple(reversed(calls)))


def dtype_of(node: fx.Node) -> str:
    """Name of the dtype of a node's tensor."""
    return str(value_of(node).dtype).removeprefix("torch.")


def _source(node: fx.Node) -> fx.Node | None:
    """What a call widens, scales, regroups or turns."""
    if node.target in TURNS or node.target in SHAPES or node.target is CAST:
        return node.all_input_nodes[0]
    if node.target is aten.mul.Tensor:
        return next((one for one in node.all_input_nodes if _is_narrow(one)), None)
    return None


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
