"""Linear layers that take the RMSNorm before them along: its root is one number a row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import fx

from overlapc.graphs.chains.bands import Operand, constant
from overlapc.graphs.chains.walking import ordered
from overlapc.graphs.edges import through
from overlapc.graphs.elementwise import is_view
from overlapc.graphs.linear.joint import is_crossed
from overlapc.graphs.linear.layers import Linear
from overlapc.graphs.values import value_of
from overlapc.runtime.linear.norming import in_front
from overlapc.runtime.programs.program import ROWS, WHOLE, Ref, Step

aten = torch.ops.aten
CAST = torch.ops.prims.convert_element_type.default
ADDS = (aten.add.Tensor, aten.add.Scalar)
ROOT = ((aten.rsqrt.default,), ADDS, (aten.mean.dim,), (aten.pow.Tensor_Scalar,))
"""What gives one over the root of the mean of squares, the last call first."""


@dataclass
class Norm:
    """An RMSNorm of rows, perhaps times a vector that the graph is given."""

    rows: fx.Node
    calls: list[fx.Node]
    """In program order."""
    gains: list[fx.Node] = field(default_factory=list)
    of_gains: list[fx.Node] = field(default_factory=list)
    """Those of the calls that widen a gain, and add a number to it."""


def with_norm(layer: Linear) -> Linear | None:
    """Return a layer that norms its rows itself; None where the graph does not norm them, or
    something else reads what the norm gives."""
    left = layer.operands[layer.left].node
    normed, _ = through(left, is_view)
    norm = _norm_above(normed)
    # A kernel multiplies rows as they are given, in their dtype.
    if norm is None or value_of(norm.rows).dtype != value_of(normed).dtype:
        return None
    mine = {*layer.dead, *norm.calls}
    views = _views_below(normed, mine)
    if not _is_only_reader(norm, mine | views) or is_crossed({*mine, *views}):
        return None
    width = int(value_of(normed).shape[-1])
    rows = Operand(norm.rows, ROWS, (-1, width))
    operands = [rows if index == layer.left else one for index, one in enumerate(layer.operands)]
    places = {norm.rows: Ref("operand", layer.left)}
    for gain in norm.gains:
        places[gain] = Ref("operand", len(operands))
        operands.append(Operand(gain, WHOLE))
    steps: list[Step] = []
    for call in norm.calls:
        steps.append(_step(call, places))
        places[call] = Ref("value", len(steps) - 1)
    program = in_front(layer.program, steps, layer.left, len(norm.gains))
    dead = {*layer.dead, *views}
    for call in reversed(norm.calls):  # another norm may have the same gain
        if _is_read_by(call, dead):
            dead.add(call)
    return replace(layer, program=program, operands=tuple(operands), dead=ordered(dead, left.graph))


def _norm_above(node: fx.Node) -> Norm | None:
    calls, gains, of_gains = list[fx.Node](), list[fx.Node](), list[fx.Node]()
    width = value_of(node).shape[-1]
    while True:
        calls.append(node)
        inputs = node.all_input_nodes
        if node.target is CAST:
            (node,) = inputs
            continue
        if node.target is not aten.mul.Tensor or len(inputs) != 2:
            return None
        root = next((one for one in inputs if one.target in ROOT[0]), None)
        if root is not None:
            break
        found = {one: its for one in inputs if (its := _gain_above(one, width)) is not None}
        if len(found) != 1:
            return None
        ((one, (gain, *between)),) = found.items()
        gains.append(gain)
        of_gains += between
        (node,) = (other for other in inputs if other is not one)
    (wide,) = (one for one in inputs if one is not root)
    for targets in ROOT:
        is_mean = aten.mean.dim in targets
        if root.target not in targets or (is_mean and not _is_of_rows(root)):
            return None
        calls.append(root)
        root = root.all_input_nodes[0]
    if root is not wide:
        return None
    if wide.target is CAST:
        calls.append(wide)
        (wide,) = wide.all_input_nodes
    return Norm(wide, list(ordered({*calls, *of_gains}, node.graph)), gains, of_gains)


def _gain_above(node: fx.Node, width: object) -> list[fx.Node] | None:
    """A vector along k that the graph is given, and the calls that widen it and add a number to it
    in float32; None where it is none: to compute one takes as long as to norm rows."""
    between = []
    is_sum = node.target in ADDS and len(node.all_input_nodes) == 1 and not node.kwargs
    if is_sum and value_of(node).dtype == torch.float32:
        between.append(node)
        (node,) = node.all_input_nodes
    if node.target is CAST and value_of(node).dtype == torch.float32:
        between.append(node)
        (node,) = node.all_input_nodes
    is_given = node.op in ("placeholder", "get_attr")
    return [node, *between] if is_given and tuple(value_of(node).shape) == (width,) else None


def _is_of_rows(mean: fx.Node) -> bool:
    """Whether a mean is that of each row, and keeps its dimension."""
    dims, *keeps = mean.args[1:]
    last = len(value_of(mean).shape) - 1
    return isinstance(dims, list | tuple) and list(dims) in ([-1], [last]) and keeps == [True]


def _views_below(normed: fx.Node, mine: set[fx.Node]) -> set[fx.Node]:
    found, waiting = set[fx.Node](), [normed]
    while waiting:
        views = [user for user in waiting.pop().users if user not in mine and is_view(user)]
        found.update(views)
        waiting += views
    return found


def _is_only_reader(norm: Norm, mine: set[fx.Node]) -> bool:
    """Whether nothing else reads the norm; rows in float32 or squared may be read by others."""
    of_rows = [
        call
        for call in norm.calls
        if norm.rows in call.all_input_nodes and call.target in (CAST, aten.pow.Tensor_Scalar)
    ]
    kept = [call for call in norm.calls if call not in of_rows and call not in norm.of_gains]
    views = [node for node in mine if is_view(node)]
    return all(_is_read_by(node, mine) for node in (*kept, *views) if node in mine)


def _is_read_by(node: fx.Node, mine: set[fx.Node]) -> bool:
    return all(user in mine for user in node.users)


def _step(call: fx.Node, places: dict[fx.Node, Ref]) -> Step:
    """A call on matrices of the rows."""
    if call.target is aten.mean.dim:
        return Step(str(call.target), (places[call.all_input_nodes[0]], (-1,), True))
    args = [places[arg] if isinstance(arg, fx.Node) else constant(call, arg) for arg in call.args]
    return Step(str(call.target), tuple(args))
