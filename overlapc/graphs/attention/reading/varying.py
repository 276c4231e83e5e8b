"""Sizes and numbers that vary from call to call: which node of a graph gives them."""

from __future__ import annotations

from typing import Any, TypeGuard

import sympy
import torch
from torch import fx
from torch.utils._pytree import tree_any, tree_iter, tree_map

from overlapc.graphs.values import value_of

VARYING = (torch.SymInt, torch.SymFloat)


def is_varying(argument: object) -> TypeGuard[fx.Node]:
    """Return whether an argument of a call is a Python number that the graph computes or is
    given."""
    return isinstance(argument, fx.Node) and isinstance(value_of(argument), VARYING)


def has_sizes(graph: fx.Graph, sizes: Any) -> bool:
    """Return whether inputs of a graph give all sizes that vary, among ``sizes``."""
    asked = {_key(one) for one in tree_iter(sizes) if varies(one)}
    return not asked or asked <= numbers_given(graph).keys()


def has_varying(arguments: Any) -> bool:
    """Return whether what varies is among arguments of calls: a size, or a node of the graph."""
    return tree_any(lambda one: isinstance(one, fx.Node) or varies(one), arguments)


def inferred(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return sizes for a view with -1 for the one that varies, where no other does."""
    is_one = sum(map(varies, sizes)) == 1
    return tuple(-1 if is_one and varies(size) else size for size in sizes)


def with_nodes(graph: fx.Graph, arguments: Any) -> Any:
    """Return arguments with the inputs of the graph in place of sizes that vary."""
    given = numbers_given(graph)

    def node_of(one: Any) -> Any:
        if varies(one):
            return given[_key(one)]
        return int(one) if isinstance(one, torch.SymInt) else one

    return tree_map(node_of, arguments)


def column_number(argument: fx.Node, product: fx.Node) -> float | None:
    """Return the number that ``argument`` is, where it follows from the columns that a product
    sums over, as ``q.size(-1) ** -0.5``; None where it does not. It is to be guarded."""
    operands = [value_of(node) for node in product.all_input_nodes]
    sizes = [size for x in operands if isinstance(x, torch.Tensor) for size in x.shape]
    summed = _symbols(sizes) - _symbols(value_of(product).shape)
    value = value_of(argument)
    own = _symbols([value])
    return float(value.node.hint) if own and own <= summed and value.node.has_hint() else None


def varies(size: object) -> bool:
    """Return whether a size is none that is known while compiling."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def numbers_given(graph: fx.Graph) -> dict[sympy.Expr, fx.Node]:
    """Return the inputs of a graph that are sizes or numbers, by what they are."""
    inputs = [node for node in graph.nodes if node.op == "placeholder" and is_varying(node)]
    return {_key(value_of(node)): node for node in inputs}


def _key(size: torch.SymInt | torch.SymFloat) -> sympy.Expr:
    return size.node.expr


def _symbols(sizes: Any) -> set[sympy.Basic]:
    return {one for size in sizes if isinstance(size, VARYING) for one in _key(size).free_symbols}
