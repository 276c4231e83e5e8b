"""The products of matrices that stand above a node, and the calls by which it is made of one."""

from __future__ import annotations

import math

import torch
from torch import fx

from overlapc.graphs.attention.products.matmuls import UNREAD, is_product
from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.naming import named
from overlapc.graphs.attention.reading.shapes import reads_shape
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import exchanges_last, is_cast, is_same, keeps_rows
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.reading.written import read_rows

MOVES = ("getitem", "narrow", "select", "cat", "stack", "split", "chunk", "tril", "triu",
         "broadcast_tensors", "flip", "roll", "gather", "index_select", "pad")  # fmt: skip
"""Calls of which scores come out cut, or put together."""
FURTHEST = 24
"""Calls between a product and its softmax: chosen, three times what any model in the tests has."""


def leads_to_product(versions: Versions, node: fx.Node, dim: int) -> bool:
    """Return whether a product of matrices stands above a node, with no reduction in between.

    ``dim``, -1 or -2, is the dimension of the node in which there may be sinks beside.
    """
    waiting, seen = [(node, dim)], set()
    while waiting and len(seen) < 4 * FURTHEST:
        one, own = waiting.pop()
        call, value = versions.calls.get(one), _value_at(versions, one)
        if one in seen or call is None or value is None:
            continue
        seen.add(one)
        if is_product(versions, call):
            return True
        if call.name in ("linear", "addmm", "scaled_dot_product_attention", "softmax"):
            continue
        sources = [read_rows(versions, one, source) for source in _parts(call)]
        above = -3 - own if exchanges_last(versions, one) else own
        waiting.extend(
            (s, above)
            for s in sources
            if s is not None and _could_be_scores(versions, s, value, own)
        )
    return False


def _value_at(versions: Versions, node: fx.Node) -> torch.Tensor | None:
    """What a node gives, or writes to an item of."""
    call = versions.calls.get(node)
    return tensor_of(call.get("input") if call is not None and call.name == "setitem" else node)


def _parts(call: Call) -> list[fx.Node]:
    """What a call's result is made of; of a write to an item what it is an item of."""
    if call.name == "setitem":
        return [call.get("input")]
    return [source for source in call.node.all_input_nodes if not reads_shape(call, source)]


def _could_be_scores(versions: Versions, source: fx.Node, value: torch.Tensor, dim: int) -> bool:
    """Whether ``value`` may be made of scores ``source``: of as many, or of all but sinks."""
    own = _value_at(versions, source)
    if own is None or not own.dtype.is_floating_point or min(own.ndim, value.ndim) < max(2, -dim):
        return False
    is_fewer = is_same((own.shape[dim] + 1,), (value.shape[dim],))
    return is_fewer or is_same((own.numel(),), (value.numel(),))


def may_be_scores(versions: Versions, node: fx.Node) -> bool:
    """Return whether a product stands above a node, perhaps with sinks beside rows or columns."""
    return any(leads_to_product(versions, node, dim) for dim in (-1, -2))


def scaled_product(versions: Versions, node: fx.Node) -> tuple[list[fx.Node], float] | None:
    """Return the calls from a product of matrices down to a node, and the number that they multiply
    it by; None where they do anything else."""
    nodes: list[fx.Node] = []
    factor = 1.0
    while (call := versions.calls.get(node)) is not None:
        nodes.insert(0, node)
        if is_product(versions, call):
            return nodes, factor
        whole, value = scaled(versions, call)
        seen = versions.read(node, whole) if whole is not None else None
        if seen is None:
            break
        node, factor = seen, factor * value
    return None


def is_of_products(versions: Versions, node: fx.Node, below: float = math.inf) -> bool:
    """Return whether a tensor is a product of matrices, in another dtype or view, times a number
    ``below`` that one, or a sum of such."""
    call = versions.calls.get(node)
    if call is None or is_product(versions, call):
        return call is not None
    whole, factor = scaled(versions, call)
    if abs(factor) >= below:
        return False
    parts = [whole]
    if call.name in ("add", "sub"):
        parts = [call.get("input"), call.get("other")]
    elif is_cast(versions, node) or keeps_rows(versions, node) or exchanges_last(versions, node):
        parts = [call.get("input")]
    seen = [versions.read(node, part) if isinstance(part, fx.Node) else None for part in parts]
    below /= max(1.0, abs(factor))
    return all(one is not None and is_of_products(versions, one, below) for one in seen)


def scaled(versions: Versions, call: Call) -> tuple[fx.Node | None, float]:
    """Return what a call multiplies by a number, and the number; None where it does anything else,
    and one."""
    pair = call.get("input"), call.get("other")
    if call.name == "neg":
        return pair[0], -1.0
    if call.name not in ("mul", "div") or call.get("rounding_mode"):
        return None, 1.0
    sides = pair, pair[::-1]
    for whole, other in sides if call.name == "mul" else sides[:1]:
        value = number(versions, other)
        if value and isinstance(whole, fx.Node) and tensor_of(whole) is not None:
            return whole, value if call.name == "mul" else 1.0 / value
    return None, 1.0


def product_above(versions: Versions, reader: fx.Node, source: fx.Node) -> fx.Node | None:
    """The nearest product that scores are made of, by first operands first."""
    node = read_rows(versions, reader, source)
    call = versions.calls.get(node) if node is not None else None
    value = _value_at(versions, node) if node is not None else None
    if node is None or call is None or value is None:
        return None
    if is_product(versions, call):
        return node
    for operand in _parts(call):
        seen = read_rows(versions, node, operand)
        if seen is not None and any(
            _could_be_scores(versions, seen, value, dim) and leads_to_product(versions, seen, dim)
            for dim in (-1, -2)
        ):
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


def is_item_of_scores(versions: Versions, node: fx.Node) -> bool:
    """Whether a node writes to an item of scores, or scores to one of a tensor."""
    call = versions.calls.get(node)
    if call is None or call.name != "setitem":
        return False
    seen = [versions.read(node, source) or source for source in node.all_input_nodes]
    return any(may_be_scores(versions, one) for one in seen)


def _may_be_of(scores: torch.Tensor | None, value: torch.Tensor | None) -> bool:
    """Whether a tensor may be made of scores: of as many, or of those of fewer batches."""
    if value is None:
        return True
    if scores is None or scores.dtype == torch.bool:
        return False
    is_repeated = scores.ndim > 1 and is_same(tuple(scores.shape[-2:]), tuple(value.shape[-2:]))
    return is_repeated or is_same((scores.numel(),), (value.numel(),))


def _why_wider(versions: Versions, call: Call) -> str:
    """Why a call gives more batches than scores have, where what stands beside them has those."""
    whole = tensor_of(call.node)
    sides = [(n, tuple(t.shape)) for n in _parts(call) if (t := tensor_of(n)) is not None]
    scores = [s for n, s in sides if may_be_scores(versions, versions.read(call.node, n) or n)]
    if call.name in MOVES or whole is None or len(scores) != 1 or len(sides) < 2:
        return ""
    own = scores[0]
    if is_same(own, tuple(whole.shape)) or not is_same(own[-2:], tuple(whole.shape[-2:])):
        return ""
    beside = [f"{named(versions, n)} of {list(s)}" for n, s in sides if s != own and len(s) > 2]
    mask = " and ".join(beside)
    return (
        f"At {call.name}, the mask {mask} has more batches than scores of {list(own)}: where "
        "queries are expanded to as many, they are read."
    )


def why_unread(versions: Versions, node: fx.Node) -> str:
    """Return why scores that no product leads down to are not read, where one stands above them in
    any spelling; empty where none does."""
    waiting, seen, wider = [node], set(), ""
    while waiting and len(seen) < 4 * FURTHEST:
        one = waiting.pop()
        call, value = versions.calls.get(one), _value_at(versions, one)
        if one in seen or call is None:
            continue
        seen.add(one)
        if call.name in UNREAD:
            return f"Scores are a product by {call.name}, which is not read: matmul and einsum are."
        if is_product(versions, call):
            cut = "Scores are cut, put together, rounded, repeated or of one row: no product."
            return wider or cut
        wider = wider or _why_wider(versions, call)
        is_item = call.name == "setitem"
        for source in one.all_input_nodes if is_item else _parts(call):
            is_moved = is_item or call.name in MOVES
            if is_moved or _may_be_of(_value_at(versions, source), value):
                waiting.append(versions.read(one, source) or source)
    return ""
