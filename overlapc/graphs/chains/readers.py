"""Who reads an all-reduce's result, and how they read it where the tiles of a kernel lie."""

from __future__ import annotations

import torch
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.chains.chain import Chain
from overlapc.graphs.chains.reductions import PAIR, REDUCTIONS, is_spread
from overlapc.graphs.elementwise import is_pointwise, is_view
from overlapc.graphs.sizes import is_static, shape_of
from overlapc.planning.packed_order import AXES, PackedOrder

aten = torch.ops.aten

OF_EVERYTHING = frozenset({aten.sum.default, aten.mean.default, aten.amax.default})
"""Reductions of all dimensions, beside those of rows."""


def takes_map(chain: Chain) -> bool:
    """Return whether all that reads a chain's result would read it from its tiles at no more cost.

    So do pointwise ops and reductions, into whose kernels Inductor inlines views of any strides.
    Every other reader (a GEMM, a custom op, the graph's output) wants C in rows: one more pass over
    memory, which bands of rows are spared. Sizes that vary would be other tiles at every call.
    """
    if chain.collective.name != "all_reduce" or len(chain.results) != 1:
        return False
    (node,) = (result.node for result in chain.results)
    static = all(gemm.static for gemm in chain.gemms) and is_static(shape_of(node))
    return static and _is_fused(node)


def _is_fused(node: fx.Node) -> bool:
    """Whether something reads a node, and only what Inductor writes kernels of."""
    return bool(node.users) and all(
        _is_fused(user) if is_view(user) or is_spread(user) else _is_generated(user)
        for user in node.users
    )


def _is_generated(node: fx.Node) -> bool:
    from torch._inductor import lowering

    target = node.target
    if target in lowering.fallbacks or target in lowering.needs_realized_inputs:
        return False
    if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
        return False
    return is_pointwise(node) or target in REDUCTIONS | OF_EVERYTHING or target is PAIR


def read_tiles(graph: fx.Graph, buffer: fx.Node, order: PackedOrder) -> fx.Node:
    """Add C[m, n] where the graph inserts now, as a view of the buffer of its tiles."""
    tiles = add_call(graph, aten.reshape.default, (buffer, list(order.shape)), like=buffer)
    turned = add_call(graph, aten.permute.default, (tiles, list(AXES)), like=buffer)
    value = add_call(graph, aten.reshape.default, (turned, list(order.whole)), like=buffer)
    for dim, (size, whole) in enumerate(zip((order.m, order.n), order.whole, strict=True)):
        if size < whole:
            value = add_call(graph, aten.slice.Tensor, (value, dim, 0, size), like=buffer)
    return value
