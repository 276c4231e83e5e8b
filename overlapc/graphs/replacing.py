"""Puts one op in the place of a chain or a linear layer: the graph is valid again afterwards."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._inductor.pattern_matcher import stable_topological_sort

from overlapc.graphs.adding import add_call
from overlapc.graphs.chains.bands import Fill, Operand, Permutation
from overlapc.graphs.chains.chain import Chain, Result
from overlapc.graphs.chains.readers import read_tiles
from overlapc.graphs.chains.walking import ordered
from overlapc.graphs.linear.layers import Linear
from overlapc.graphs.sizes import Dim, Size, Sum, same, shape_of, size_of, sizes_of
from overlapc.graphs.values import value_of
from overlapc.planning.packed_order import PackedOrder

aten = torch.ops.aten


def replace_chain(
    graph: fx.Graph, chain: Chain, spec: str, packed: PackedOrder | None = None
) -> None:
    """Insert the op where the collective starts, use its results, and erase the chain.

    What lay between a GEMM and the collective for others to read moves behind the op. With
    ``packed`` the op gives a buffer of tiles, from which its result is read.
    """
    with graph.inserting_before(chain.collective.start):
        sizes = _Sizes(graph, {})
        for asked, dim in chain.sizes.items():
            sizes.replace(asked, dim)
        op = _call(graph, chain, spec, sizes)
        for index, result in enumerate(chain.results):
            value = add_call(graph, operator.getitem, (op, index), like=result.node)
            if packed is not None:
                value = read_tiles(graph, value, packed)
            if result in chain.trimmed:
                value = _trimmed(graph, value, chain, sizes)
            value = _shaped(graph, value, result, sizes)
            result.node.replace_all_uses_with(value)
    for node in reversed(chain.dead):
        graph.erase_node(node)
    stable_topological_sort(graph)


def replace_linear(graph: fx.Graph, linear: Linear, spec: str) -> fx.Node:
    """Insert the op of linear layers where its last result stands, use its results, and erase the
    layers. What reads one of several before that moves behind the op, which is returned."""
    (*_, last) = ordered({result.node for result in linear.results}, graph)
    is_one = len(linear.results) == 1
    target = torch.ops.overlapc.linear.default if is_one else torch.ops.overlapc.linears.default
    with graph.inserting_before(last):
        sizes = _Sizes(graph, {})
        operands = [_given(graph, operand, sizes) for operand in linear.operands]
        op = add_call(graph, target, (operands, spec), like=linear.gemms[0].node)
        values = []
        for index, result in enumerate(linear.results):
            like = result.node
            value = op if is_one else add_call(graph, operator.getitem, (op, index), like=like)
            values.append(_shaped(graph, value, result, sizes))
    for result, value in zip(linear.results, values, strict=True):
        result.node.replace_all_uses_with(value)
    for old in reversed(linear.dead):
        graph.erase_node(old)
    if not is_one:
        stable_topological_sort(graph)
    return op


def _given(graph: fx.Graph, operand: Operand, sizes: _Sizes) -> fx.Node:
    """Give an operand the shape in which the op takes it."""
    return _laid_out(graph, operand.node, operand.permuted, operand.shape, sizes)


def _call(graph: fx.Graph, chain: Chain, spec: str, sizes: _Sizes) -> fx.Node:
    like = chain.gemms[0].node
    operands = []
    for operand in chain.operands:
        if operand.fill is not None:
            node = _full(graph, operand, operand.fill, sizes)
        else:
            node = _given(graph, operand, sizes)
        if operand in chain.padded:
            node = _padded(graph, node, chain, sizes)
        operands.append(node)
    target = getattr(torch.ops.overlapc, chain.kind).default
    outer = sizes.product(chain.outer, like)
    splits = list(chain.receives), list(chain.sends)
    return add_call(
        graph, target, (operands, outer, *splits, chain.collective.group, spec), like=like
    )


def _full(graph: fx.Graph, operand: Operand, fill: Fill, sizes: _Sizes) -> fx.Node:
    """Make an operand full of one value."""
    like, value = value_of(operand.node), fill.value
    assert operand.shape is not None
    shape = [sizes.product(fill.rows, operand.node) if d == -1 else d for d in operand.shape]
    dtype = torch.bool if value is True else like.dtype
    options = {"dtype": dtype, "layout": torch.strided, "device": like.device, "pin_memory": False}
    return add_call(graph, aten.full.default, (shape, value), like=operand.node, kwargs=options)


def _padded(graph: fx.Graph, node: fx.Node, chain: Chain, sizes: _Sizes) -> fx.Node:
    """Add rows of zeros at the end of each block."""
    assert chain.padding is not None
    added = sizes.product((chain.padding.added, *chain.padding.inner), node)
    pads = [0, 0] * (len(shape_of(node)) - 1) + [0, added]
    return _by_blocks(graph, node, chain, sizes, aten.constant_pad_nd.default, (pads, 0.0))


@dataclass
class _Sizes:
    """Sizes as nodes, made where the graph inserts now."""

    graph: fx.Graph
    replaced: dict[fx.Node, Any]
    """What takes the place of a node that asked a dead value for its size."""

    def replace(self, asked: fx.Node, dim: Dim) -> None:
        """Let others say what ``asked`` said."""
        self.replaced[asked] = self.of(dim)
        size = self.replaced[asked]
        for user in list(asked.users):
            user.args = fx.map_arg(user.args, lambda n: size if n is asked else n)
            user.kwargs = fx.map_arg(user.kwargs, lambda n: size if n is asked else n)

    def of(self, dim: Dim) -> int | fx.Node:
        """Return a size as an argument."""
        if isinstance(dim, Sum):
            return self.total(dim)
        if not isinstance(dim, Size):
            return self.replaced.get(dim, dim) if isinstance(dim, fx.Node) else dim
        size = self._add(aten.sym_size.int, (dim.node, dim.dim), dim.node)
        return size if dim.factor == 1 else self._add(operator.mul, (size, dim.factor), dim.node)

    def total(self, dim: Sum) -> int | fx.Node:
        """Return a sum as an argument: what varies is added up, and then the rest."""
        parts = [self.of(part) for part in dim.parts]
        rest = sum(part for part in parts if isinstance(part, int))
        first, *others = [part for part in parts if isinstance(part, fx.Node)] or [rest]
        if isinstance(first, int):
            return first
        for part in [*others, rest] if rest else others:
            first = self._add(operator.add, (first, part), first)
        return first

    def product(self, dims: Sequence[Dim], like: fx.Node) -> int | fx.Node:
        """Return the product of sizes as an argument."""
        total: int | fx.Node = 1
        for size in map(self.of, dims):
            if isinstance(total, int) and (isinstance(size, int) or total == 1):
                total = total * size if isinstance(size, int) else size
            else:
                total = self._add(operator.mul, (total, size), like)
        return total

    def _add(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        return add_call(self.graph, target, args, like=like)


def _trimmed(graph: fx.Graph, value: fx.Node, chain: Chain, sizes: _Sizes) -> fx.Node:
    """Drop the rows of padding at the end of each block."""
    assert chain.padding is not None
    end = sizes.product((chain.padding.end, *chain.padding.inner), value)
    cut = len(chain.outer), 0, end
    return _by_blocks(graph, value, chain, sizes, aten.slice.Tensor, cut)


def _by_blocks(
    graph: fx.Graph, node: fx.Node, chain: Chain, sizes: _Sizes, op: Any, more: tuple[Any, ...]
) -> fx.Node:
    """``op(node, *more)`` of a tensor ``[rows, ..]`` as ``[outer, rows, ..]``."""
    outer = [sizes.of(dim) for dim in chain.outer]
    if not outer:
        return add_call(graph, op, (node, *more), like=node)
    rest = [sizes.of(dim) for dim in sizes_of(node, 1)]
    node = add_call(graph, aten.reshape.default, (node, [*outer, -1, *rest]), like=node)
    node = add_call(graph, op, (node, *more), like=node)
    return add_call(graph, aten.reshape.default, (node, [-1, *rest]), like=node)


def _shaped(graph: fx.Graph, value: fx.Node, result: Result, sizes: _Sizes) -> fx.Node:
    """Give a result the shape of what it takes the place of."""
    value = _laid_out(graph, value, result.permuted, result.dims, sizes)
    if result.views:
        source = result.views[0].args[0]
        for view in result.views:
            copy = graph.node_copy(view, lambda n, s=source, v=value: v if n is s else n)
            source, value = view, copy
    return value


def _laid_out(
    graph: fx.Graph,
    value: fx.Node,
    permuted: Permutation | None,
    dims: Sequence[Dim] | None,
    sizes: _Sizes,
) -> fx.Node:
    """Permute a value if that is said, and give it these sizes."""
    if permuted is not None:
        value = _reshaped(graph, value, permuted.shape, sizes)
        value = add_call(graph, aten.permute.default, (value, list(permuted.order)), like=value)
        contiguous = {"memory_format": torch.contiguous_format}
        value = add_call(graph, aten.clone.default, (value,), like=value, kwargs=contiguous)
    return _reshaped(graph, value, dims, sizes)


def _reshaped(
    graph: fx.Graph, value: fx.Node, dims: Sequence[Dim] | None, sizes: _Sizes
) -> fx.Node:
    if dims is None or _fits(value, dims):
        return value
    shape = [sizes.of(dim) for dim in dims]
    return add_call(graph, aten.reshape.default, (value, shape), like=value)


def _fits(value: fx.Node, dims: Sequence[Dim]) -> bool:
    """Whether a value has these sizes already, -1 standing for any."""
    own = shape_of(value)
    sizes = [size_of(dim) for dim in dims]
    if len(own) != len(sizes):
        return False
    return same(own, [mine if size == -1 else size for mine, size in zip(own, sizes, strict=True)])
