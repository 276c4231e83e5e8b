"""Calls that only move elements, and calls that compute each element from those at its place."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.sizes import same, shape_of
from overlapc.graphs.values import is_contiguous, value_of

aten = torch.ops.aten
prims = torch.ops.prims

ORDERED_VIEWS = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.flatten.using_ints,
        aten.alias.default,
    }
)
"""Views that keep the order of elements: an elementwise collective may be moved across them."""

REARRANGING = ORDERED_VIEWS | {
    operator.getitem,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.slice.Tensor,
    aten.cat.default,
    aten.permute.default,
    aten.transpose.int,
}
"""Ops that only move elements: equal calls of them give equal values."""

CASTS = frozenset({prims.convert_element_type.default, aten.view.dtype})


def is_view(node: fx.Node) -> bool:
    """Return whether a node keeps the order of its input's elements."""
    if node.target is aten.clone.default:
        return is_contiguous(node)
    if node.target is aten.expand.default:  # of nothing: matmul puts it before a batched GEMM
        return same(shape_of(node), shape_of(node.all_input_nodes[0]))
    if (order := permutation(node)) is not None:  # of dimensions of size one, as in an einsum
        shape = shape_of(node.all_input_nodes[0])
        moved = [index for index in order if not statically_known_true(shape[index] == 1)]
        return moved == sorted(moved)
    return node.target in ORDERED_VIEWS


def permutation(node: fx.Node) -> list[int] | None:
    """Return the dimensions of its input in the order in which a node has them, if it permutes."""
    if node.target is not aten.permute.default:
        return None
    order = node.args[1]
    assert isinstance(order, list | tuple)
    return [int(index) % len(order) for index in order]  # type: ignore[arg-type]


def is_pointwise(node: fx.Node) -> bool:
    """Return whether a node computes each element from the elements at its place."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target is aten.view.dtype:
        source = value_of(node.all_input_nodes[0])
        return source.dtype.itemsize == value_of(node).dtype.itemsize
    return target in CASTS or torch.Tag.pointwise in target.tags
