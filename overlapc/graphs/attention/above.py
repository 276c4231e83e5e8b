"""The products of matrices that stand above a node, and the calls by which it is made of one."""

from __future__ import annotations

import torch
from torch import fx

from overlapc.graphs.attention.products import NAMES
from overlapc.graphs.attention.spelling import tensor_of
from overlapc.graphs.attention.tensors import is_same
from overlapc.graphs.attention.versions import Versions

FURTHEST = 24
"""Calls between a product and its softmax: chosen, three times what any model in the tests has."""


def leads_to_product(versions: Versions, node: fx.Node, dim: int = -1) -> bool:
    """Return whether a product of matrices stands above a node, with no reduction in between.

    ``dim`` is the dimension in which there may be sinks beside.
    """
    waiting, seen = [node], set()
    while waiting and len(seen) < 4 * FURTHEST:
        one = waiting.pop()
        call, value = versions.calls.get(one), tensor_of(one)
        if one in seen or call is None or value is None:
            continue
        seen.add(one)
        if call.name in NAMES:
            return True
        if call.name in ("linear", "addmm", "scaled_dot_product_attention", "softmax"):
            continue
        sources = [versions.read(one, source) for source in one.all_input_nodes]
        waiting.extend(s for s in sources if s is not None and _could_be_scores(s, value, dim))
    return False


def _could_be_scores(source: fx.Node, value: torch.Tensor, dim: int = -1) -> bool:
    """Whether ``value`` may be made of scores ``source``: of as many, or of all but sinks."""
    own = tensor_of(source)
    if own is None or own.ndim < 2 or value.ndim < 2 or not own.dtype.is_floating_point:
        return False
    is_fewer = is_same((own.shape[dim] + 1,), (value.shape[dim],))
    return is_fewer or is_same((own.numel(),), (value.numel(),))


def product_above(versions: Versions, reader: fx.Node, source: fx.Node) -> fx.Node | None:
    """The nearest product that scores are made of, by first operands first."""
    node = versions.read(reader, source)
    call, value = (versions.calls.get(node), tensor_of(node)) if node is not None else (None, None)
    if node is None or call is None or value is None:
        return None
    if call.name in NAMES:
        return node
    for operand in node.all_input_nodes:
        seen = versions.read(node, operand)
        if seen is not None and _could_be_scores(seen, value) and leads_to_product(versions, seen):
            return product_above(versions, node, operand)
    return None


def between(versions: Versions, product: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The calls by which ``last`` depends on ``product``, in their order, without that."""
    depends = {product}
    nodes = [n for n in versions.calls if versions.index[product] < versions.index[n]]
    for node in nodes:
        if versions.index[node] > versions.index[last]:
            break
        if any(versions.read(node, source) in depends for source in node.all_input_nodes):
            depends.add(node)
    needed, waiting = set(), [last]
    while waiting:
        node = waiting.pop()
        if node in depends and node is not product and node not in needed:
            needed.add(node)
            seen = (versions.read(node, source) for source in node.all_input_nodes)
            waiting.extend(one for one in seen if one is not None)
    return sorted(needed, key=versions.index.__getitem__)
