"""Linear layers that take the RMSNorm before them along: its root is one number a row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import fx

from overlapc.graphs.bands import Operand, constant, is_view
from overlapc.graphs.joint_linears import is_crossed
from overlapc.graphs.linears import Linear
from overlapc.graphs.nodes import through, value_of
from overlapc.graphs.walking import ordered
from overlapc.runtime.norming import in_front
from overlapc.runtime.program import ROWS, WHOLE, Ref, Step

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


def with_norm(layer: Linear) -> Linear | None:
    """Return a layer that norms its rows itself; None where the graph does not norm them, or
    something else reads what the norm gives."""
    left = layer.operands[layer.left].node
    normed, _ = through(left, is_view)
    norm = _norm_above(normed)
    if norm is None:
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
    dead = {*layer.dead, *views, *(call for call in norm.calls if _is_read_by(call, mine | views))}
    return replace(layer, program=program, operands=tuple(operands), dead=ordered(dead, left.graph))


def _norm_above(node: fx.Node) -> Norm | None:
    calls, gains = list[fx.Node](), list[fx.Node]()
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
        gain = next((one for one in inputs if _is_gain(one, width)), None)
        if gain is None:
            return None
        gains.append(gain)
        (node,) = (one for one in inputs if one is not gain)
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
    return Norm(wide, list(ordered(set(calls), node.graph)), gains)


def _is_gain(node: fx.Node, width: object) -> bool:
    """A vector along k that is read as it lies: to compute one takes as long as to norm rows."""
    return node.op in ("placeholder", "get_attr") and tuple(value_of(node).shape) == (width,)


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
    """Whether nothing else reads the norm; rows in float32 may be read by others."""
    kept = [call for call in norm.calls if norm.rows not in call.all_input_nodes]
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
