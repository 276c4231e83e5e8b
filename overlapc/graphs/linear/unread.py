"""Products by a parameter of which no op takes the place, and why: none passes in silence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import torch
from torch import fx
from torch._functorch._aot_autograd.descriptors import ParamAOTInput, PlainAOTInput
from torch._guards import TracingContext
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.bodies import placeholders
from overlapc.graphs.chains.gemms import form_of, left_of
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.linear.held_weights import CAST, PARTS, SHAPES, TURNS, dtype_of
from overlapc.graphs.linear.layers import is_linear
from overlapc.graphs.sizes import shape_of
from overlapc.graphs.values import value_of

aten = torch.ops.aten

VIEWS = TURNS | PARTS | SHAPES | {aten.expand.default}
"""What leads from a parameter to a product of it as it is."""
GATHERS = (aten.index.Tensor, aten.index_select.default, aten.embedding.default)
PRODUCT = re.compile(
    r"linear|gem[mv]|matmul|_mm$|_mm_|encoder_layer|multi_head_attention|rnn_layer"
)
"""In the name of an op that multiplies by a weight in its own way, or of layers that do."""


def parameters_of(graph: fx.Graph) -> set[fx.Node]:
    """Return the inputs of a graph that are parameters, or buffers that it does not write to.

    Empty for a backward graph, whose inputs are named otherwise, and for the body of another op.
    """
    context = TracingContext.try_get()
    meta = context.fw_metadata if context else None
    static = set(meta.static_input_indices or ()) if meta else set[int]()
    return {node for node in graph.nodes if _is_parameter(node, static) and not _is_written(node)}


def unread(graph: fx.Graph, parameters: Collection[fx.Node]) -> Iterator[Refusal]:
    """Yield every product by a parameter that is not read as a linear layer, in program order."""
    if any(str(node.target).startswith("tangents") for node in placeholders(graph)):
        return  # gradients: most products by a parameter are of its other operand's
    made = _made_of(graph, parameters)
    for node in graph.nodes:
        if node.op == "call_function" and (found := _why(node, made)):
            yield Refusal(node, *found)


def _is_parameter(node: fx.Node, static: Collection[int]) -> bool:
    if node.op == "get_attr":  # of a graph whose weights are frozen
        return isinstance(value_of(node), torch.Tensor)
    desc = node.meta.get("desc") if node.op == "placeholder" else None
    is_static = isinstance(desc, PlainAOTInput) and desc.idx in static
    return is_static or isinstance(desc, ParamAOTInput)


def _is_written(node: fx.Node) -> bool:
    """As a KV store is."""
    return any(user.target is aten.copy_.default and user.args[0] is node for user in node.users)


def _made_of(graph: fx.Graph, parameters: Collection[fx.Node]) -> set[fx.Node]:
    """The parameters, and what a graph computes of them and of nothing else that it is given."""
    made = set(parameters)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and all(one in made for one in inputs):
            made.add(node)
    return made


def _why(node: fx.Node, made: Collection[fx.Node]) -> tuple[str, str] | None:
    form = form_of(node)
    if form is None or form.scales or form.offsets is not None:
        return _as_elements(node, made) or _as_another_op(node, made)
    left, right = left_of(node), node.args[form.b]
    assert isinstance(right, fx.Node)
    if left in made and right not in made and not _is_outer(left):
        if _given(left) in made:
            return "left_weight", "Its weight is the left operand, and only right ones are read."
        return None
    if is_linear(node):
        return None
    if right in made and left not in made:
        return _as_made(right)
    its = _given(right)
    if its.target in GATHERS and its.args[0] in made:
        return "gathered_weight", "The graph gathers its weight from a parameter at every call."
    return None


def _as_made(weight: fx.Node) -> tuple[str, str]:
    """Why a right operand that is made of parameters alone is not read where it lies."""
    if _given(weight).op != "call_function" and len(shape_of(weight)) > 2:
        return "own_weights", "Each of its batches has a weight of its own, and one GEMM has one."
    source = _given(weight, VIEWS - {aten.expand.default})
    if source.target is CAST:
        was, now = dtype_of(source.all_input_nodes[0]), dtype_of(source)
        return (
            "cast_weight",
            f"The graph casts its weight from {was} to {now} at every call, as autocast has it: a "
            f"weight that is held in {now} is read.",
        )
    return (
        "computed_weight",
        "The graph computes its weight from parameters at every call, at last by "
        f"{_name_of(source)}: only one that lies in memory is read.",
    )


def _as_elements(total: fx.Node, made: Collection[fx.Node]) -> tuple[str, str] | None:
    """Why a matrix times one vector is no GEMM: Inductor has taken it apart."""
    if total.target is not aten.sum.dim_IntList or len(total.args) != 2:
        return None
    (product, *_), dims = total.all_input_nodes, total.args[1]
    is_last = isinstance(dims, list | tuple) and list(dims) == [len(shape_of(product)) - 1]
    if product.target is not aten.mul.Tensor or len(product.users) > 1 or not is_last:
        return None
    ranks = {len(shape_of(one)): one for one in product.all_input_nodes}
    weights = [one for one in product.all_input_nodes if _given(one) in made]
    if len(weights) != 1 or min(ranks) != 1 or len(ranks) != 2:
        return None
    return (
        "vector",
        "A matrix times one vector is computed by elements and a sum, in one generated kernel that "
        "reads the weight once.",
    )


def _as_another_op(node: fx.Node, made: Collection[fx.Node]) -> tuple[str, str] | None:
    """Why an op that multiplies by a parameter in its own way stays: packed, quantised, grouped."""
    if not isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return None
    namespace, _, name = (called := _name_of(node)).partition(".")
    if namespace == "overlapc" or "upsample" in name or not PRODUCT.search(name):
        return None
    if not any(_given(one) in made for one in node.all_input_nodes):
        return None
    return "another_op", f"{called} computes it, which multiplies by a weight in its own way."


def _name_of(call: fx.Node) -> str:
    """As in ``aten.mm``."""
    return ".".join(str(call.target).replace("::", ".").split(".")[:2])


def _given(node: fx.Node, views: Collection[object] = VIEWS) -> fx.Node:
    """What views lead to a node."""
    while node.target in views:
        node = node.all_input_nodes[0]
    return node


def _is_outer(left: fx.Node) -> bool:
    """Whether a left operand has one k, as angles of a rotary embedding are computed."""
    return statically_known_true(shape_of(left)[-1] == 1)
