"""The GEMMs of a post-grad graph: what each takes by rows, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.chains.bands import Band, Builder, constant
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import Dim, is_static, same, shape_of, sizes_of
from overlapc.graphs.values import tensor_facts
from overlapc.runtime.programs.program import OFFSETS, ROWS, WHOLE, Ref

aten = torch.ops.aten


@dataclass(frozen=True)
class Form:
    """Where an op has its operands: positions of its arguments."""

    a: int
    b: int
    bias: int | None = None
    scales: tuple[int, ...] = ()
    """Scales of a, of b and of the result."""
    offsets: int | None = None
    batched: bool = False
    """Dimension 0 counts independent GEMMs."""


FORMS = {
    aten.mm.default: Form(0, 1),
    aten.addmm.default: Form(1, 2, bias=0),
    aten.bmm.default: Form(0, 1, batched=True),
    aten.baddbmm.default: Form(1, 2, bias=0, batched=True),
    aten._scaled_mm.default: Form(0, 1, bias=4, scales=(2, 3, 5)),
    aten._grouped_mm.default: Form(0, 1, bias=3, offsets=2),
}


@dataclass(frozen=True)
class Gemm:
    """``a[m, k] @ b[k, n] (+ bias)``, or several of them; sizes are hints where symbolic."""

    node: fx.Node
    m: int
    """Rows, of all batches together."""
    n: int
    k: int
    dtype: str
    device: str
    static: bool
    """The sizes are numbers, not hints of symbols."""


BATCHES = Form(0, 1, bias=3, batched=True)
"""A grouped GEMM of as many matrices on either side, which needs no offsets."""


def form_of(node: fx.Node) -> Form | None:
    """Return where a node has its operands if it is a GEMM that is read here, else None."""
    if node.target is aten._grouped_mm.default:
        both = [len(shape_of(_node(arg))) for arg in node.args[:2]]
        return BATCHES if both == [3, 3] else FORMS[aten._grouped_mm.default]
    return FORMS.get(node.target)  # pyright: ignore[reportArgumentType, reportCallIssue]


def is_shared(node: fx.Node) -> bool:
    """Return whether all batches of a batched GEMM have one right operand: it is an ``mm``.

    That is how a matmul with a matrix is spelled where its left operand is not contiguous, and how
    an einsum is: of one batch.
    """
    return node.target is aten.bmm.default and shared_weight(node) is not None


def shared_weight(bmm: fx.Node) -> fx.Node | None:
    """Return the one right operand of all batches, ``[.., k, n]`` of one matrix; else None."""
    right = _node(bmm.args[1])
    spread = right.all_input_nodes[0] if right.target is aten.reshape.default else right
    if spread.target is aten.expand.default:
        source = spread.all_input_nodes[0]
        shape = shape_of(source)
        is_one = all(statically_known_true(size == 1) for size in shape[:-2])
        if is_one and same(shape[-2:], shape_of(right)[-2:]):
            return source
    return right if statically_known_true(shape_of(right)[0] == 1) else None


def is_batched(node: fx.Node) -> bool:
    """Return whether a node is several GEMMs, each with a right operand of its own."""
    form = form_of(node)
    return form is not None and form.batched and not is_shared(node)


def rows_of(node: fx.Node) -> int | torch.SymInt:
    """Return the size of dimension 0 of a GEMM's result as a program computes it."""
    shape = shape_of(node)
    return shape[0] * shape[1] if is_shared(node) else shape[0]


def left_of(node: fx.Node) -> fx.Node:
    """Return the node of a GEMM's left operand."""
    form = FORMS[node.target]  # pyright: ignore[reportArgumentType]
    left = node.args[form.a]
    assert isinstance(left, fx.Node)
    return left


def read_gemm(node: fx.Node) -> Gemm:
    """Return the sizes of a GEMM."""
    form = FORMS[node.target]  # pyright: ignore[reportArgumentType]
    left, right = tensor_facts(node.args[form.a]), tensor_facts(node.args[form.b])
    if left is None or right is None:
        refuse(node, "no_sizes", "Tracing left no sizes at the GEMM.")
    *rows, k = left.shape
    m = rows[0] if len(rows) == 1 else rows[0] * rows[1]
    static = left.static and right.static
    return Gemm(node, m, right.shape[-1], k, left.dtype, left.device, static)


def add_gemm(builder: Builder, node: fx.Node, left: Band | None = None) -> Band:
    """Add a GEMM to a program: of ``left``, or of its left operand's rows."""
    if left is None and not statically_known_true(rows_of(node) == builder.rows):
        refuse(node, "unlike_gemms", "The sum is of GEMMs with different rows or dtypes.")
    builder.bands[node] = (
        _shared(builder, node, left) if is_shared(node) else _gemm(builder, node, left)
    )
    return builder.bands[node]


def _shared(builder: Builder, node: fx.Node, left: Band | None) -> Band:
    shape, source = shape_of(node), left_of(node)
    weight = shared_weight(node)
    assert weight is not None
    rest = (-1, *sizes_of(source, 2))
    more = len(shape_of(weight)) - 2
    right = sizes_of(weight, more) if more else None
    a = left.ref if left else builder.operand(source, ROWS, rest)
    ref = builder.step(aten.mm.default, (a, builder.operand(weight, WHOLE, right)))
    return Band(ref, 2, shape, _dims(source, left, weight))


def _dims(source: fx.Node, left: Band | None, right: fx.Node) -> tuple[Dim, ...] | None:
    """Sizes of a result as arguments: rows are those of the left operand, columns of the right."""
    rows = left.dims if left else sizes_of(source, 0)
    return None if rows is None else (*rows[:-1], *sizes_of(right, len(shape_of(right)) - 1))


def _gemm(builder: Builder, node: fx.Node, left: Band | None) -> Band:
    form = form_of(node)
    assert form is not None
    args: list[Any] = list(node.args)
    shape = shape_of(node)
    _check(node, form)
    args[form.a] = left.ref if left else builder.operand(left_of(node), ROWS)
    right = _node(args[form.b])
    args[form.b] = builder.operand(right, ROWS if form.batched else WHOLE)
    for place in form.scales:
        if len(args) > place and isinstance(args[place], fx.Node):
            args[place] = builder.operand(_node(args[place]), _scale_mode(node, form, place))
    if form.offsets is not None:
        args[form.offsets] = builder.operand(_node(args[form.offsets]), OFFSETS)
    if form.bias is not None and len(args) > form.bias and isinstance(args[form.bias], fx.Node):
        args[form.bias] = builder.leaf(node, _node(args[form.bias]), shape, 1)
    args = [arg if isinstance(arg, Ref) else constant(node, arg) for arg in args]
    kwargs = [(name, constant(node, value)) for name, value in node.kwargs.items()]
    ref = builder.step(node.target, args, kwargs)
    return Band(ref, 1, shape, _dims(left_of(node), left, right))


def _node(arg: object) -> fx.Node:
    assert isinstance(arg, fx.Node)
    return arg


def _check(node: fx.Node, form: Form) -> None:
    if form.offsets is None:
        return
    left, right = shape_of(left_of(node)), shape_of(_node(node.args[form.b]))
    given = len(node.args) > form.offsets and isinstance(node.args[form.offsets], fx.Node)
    if len(left) != 2 or len(right) != 3 or not given:
        refuse(node, "grouped_form", "The groups of this grouped GEMM are not ranges of its rows.")


def _scale_mode(node: fx.Node, form: Form, place: int) -> str:
    """Scales of a: one for the tensor, or one a row; all others are the same for every row."""
    if place != form.scales[0]:
        return WHOLE
    scale = shape_of(_node(node.args[place]))
    if all(size == 1 for size in scale if isinstance(size, int)) and is_static(scale):
        return WHOLE
    if len(scale) == 2 and statically_known_true(scale[1] == 1):
        return ROWS
    return refuse(node, "block_scales", "The scales are of blocks, not of rows or of the tensor.")
