"""Reductions of each row, and what spreads their results over a row again: norms are made of both.

They keep rows apart, as pointwise ops do.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from overlapc.graphs.chains.bands import Band, Builder, constant
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import dims_of, fixed, same, shape_of
from overlapc.graphs.values import value_of

aten = torch.ops.aten

PAIR = aten.var_mean.correction
"""Gives a variance and a mean: two values of a program, each computed by itself."""

REDUCTIONS = frozenset(
    {
        aten.sum.dim_IntList,
        aten.mean.dim,
        aten.amax.default,
        aten.amin.default,
        aten.var.correction,
    }
)


def is_reduction(node: fx.Node) -> bool:
    """Return whether a node reduces dimensions of its input, or is one of a pair that does.

    One over dimension 0, which always holds rows, is none.
    """
    call = node.all_input_nodes[0] if _is_of_pair(node) else node
    if call.target not in REDUCTIONS and not is_pair(call):
        return False
    value = value_of(call.all_input_nodes[0])
    return isinstance(value, torch.Tensor) and 0 not in _axes(call, value.dim())


def is_spread(node: fx.Node) -> bool:
    """Return whether a node repeats its input along dimensions that it has with size one."""
    return node.target is aten.expand.default


def is_pair(node: fx.Node) -> bool:
    """Return whether a node gives no tensor itself, but two to be taken out of it."""
    return node.target is PAIR


def add_reduction(builder: Builder, node: fx.Node) -> Band:
    """Add a reduction to a program, whose input is known; one over rows is refused."""
    (source,) = node.all_input_nodes
    if is_pair(node):
        builder.bands[node] = builder.bands[source]
        return builder.bands[node]
    call = source if _is_of_pair(node) else node
    (reduced,) = call.all_input_nodes
    band = builder.bands[reduced]
    axes = _axes(call, len(band.shape))
    if any(axis < band.lead for axis in axes):
        refuse(node, "not_rowwise", f"{call.target} reduces over rows, and needs all of them.")
    own = tuple(axis - band.lead + 1 for axis in axes)
    more = {name: constant(call, value) for name, value in call.kwargs.items()}
    op: Any = call.target
    if is_pair(call) and node.args[1] == 1:
        op = aten.mean.dim
        more = {"keepdim": more.get("keepdim", False)}
    elif is_pair(call):
        op = aten.var.correction
    rest = [constant(call, arg) for arg in call.args[2:]]
    ref = builder.step(op, (band.ref, own, *rest), tuple(more.items()))
    shape = shape_of(node)
    dims = dims_of(node, shape) or _reduced(band, axes, keeps=len(shape) == len(band.shape))
    builder.bands[node] = Band(ref, band.lead, shape, dims)
    return builder.bands[node]


def add_spread(builder: Builder, node: fx.Node) -> Band:
    """Add an ``expand`` of what is known to a program; one that repeats rows is refused."""
    (source,) = node.all_input_nodes[:1]
    band, shape = builder.bands[source], shape_of(node)
    if len(shape) != len(band.shape) or not same(shape[: band.lead], band.shape[: band.lead]):
        refuse(node, "not_rowwise", f"{node.target} repeats rows.")
    rest = fixed(node, shape[band.lead :])
    ref = builder.step(node.target, (band.ref, (-1, *rest)))
    dims = None if band.dims is None else (*band.dims[: band.lead], *rest)
    builder.bands[node] = Band(ref, band.lead, shape, dims)
    return builder.bands[node]


def _is_of_pair(node: fx.Node) -> bool:
    return node.target is operator.getitem and is_pair(node.all_input_nodes[0])


def _axes(call: fx.Node, dimensions: int) -> tuple[int, ...]:
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if not isinstance(given, list | tuple) or not given:
        given = range(dimensions)
    return tuple(int(axis) % dimensions for axis in given)  # pyright: ignore[reportArgumentType]


def _reduced(band: Band, axes: tuple[int, ...], *, keeps: bool) -> Any:
    if band.dims is None:
        return None
    kept = [1 if axis in axes else dim for axis, dim in enumerate(band.dims)]
    return tuple(kept if keeps else (d for axis, d in enumerate(band.dims) if axis not in axes))
