"""From a softmax down to the product of its weights and the values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.graphs.attention.products.matmuls import UNREAD, Product, is_product, read_product
from overlapc.graphs.attention.products.places import Places
from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.naming import weights_read
from overlapc.graphs.attention.reading.shapes import reads_shape
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    insertion,
    is_cast,
    is_same,
    keeps_all,
    keeps_rows,
    order_of,
)
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.sinks import Sinks, without_sinks
from overlapc.graphs.attention.scores.softmaxes import Softmax
from overlapc.graphs.attention.zeroed import Zeroing, read_zeroing
from overlapc.graphs.collectives import Refusal

FURTHEST = 12
"""Calls between a softmax and the product with values: chosen, twice what models have."""


@dataclass(frozen=True)
class Weights:
    """``product.left`` is the softmax, regrouped."""

    product: Product
    nodes: tuple[fx.Node, ...]
    """From the softmax down to the product, both among them."""
    zeroings: tuple[Zeroing, ...] = ()
    """What makes some of the weights zeros."""


def read_weights(
    versions: Versions, softmax: Softmax, sinks: Sinks | None, places: Places
) -> Weights | Refusal:
    """Walk down from a softmax to the one product that it is a factor of.

    ``sinks`` among its columns are to be left out on the way; ``places`` are of its result.
    """
    if softmax.product is not None:
        if places != Places():
            return _changed(versions.calls[softmax.product])
        return _divided_after(versions, softmax, versions.calls[softmax.product], sinks)
    node, nodes, spelled = softmax.node, [softmax.node], softmax.node
    zeroings: list[Zeroing] = []
    for _ in range(FURTHEST):
        readers = [
            reader
            for reader in dict.fromkeys(versions.readers[node])
            if not reads_shape(versions.calls.get(reader), node)
        ]
        zeroing = read_zeroing(versions, softmax, node, readers) if places.is_usual else None
        if zeroing is not None:
            zeroings.append(zeroing)
            nodes += zeroing.nodes
            node = nodes[-1]
            continue
        if len(readers) != 1:
            return _read_by_others(versions, node, readers)
        reader = readers[0]
        seen = [s for s in reader.all_input_nodes if versions.read(reader, s) is node]
        if not seen:
            reason = "Weights may be written through another view of them."
            return Refusal(reader, "hidden_write", reason)
        spelled = seen[0]
        nodes.append(reader)
        call = versions.calls.get(reader)
        if call is None or reader.op == "output":
            return _read_by_others(versions, node, readers)
        if sinks is not None and (
            left := without_sinks(versions, node, reader, sinks, places.keys)
        ):
            nodes += left[1:]
            node, sinks = left[-1], None
            continue
        if moved := places.after(order_of(versions, reader)):
            node, places = reader, moved
            continue
        summed = _summed(versions, call)
        nodes += summed
        if summed or is_product(versions, call):
            call = versions.calls[nodes[-1]]
            if sinks is not None:
                return _sinks_weigh(call)
            product = read_product(versions, call, left=spelled, places=places)
            if isinstance(product, Refusal):
                return product
            if product.added is not None or product.alpha != 1:
                return _changed(call)
            return Weights(product, tuple(nodes), tuple(zeroings))
        refusal = _why_changed(versions, call, places)
        if refusal:
            return refusal
        node = reader
    return Refusal(node, "far_product", f"Over {FURTHEST} calls stand between softmax and product.")


def _divided_after(
    versions: Versions, softmax: Softmax, call: Call, sinks: Sinks | None
) -> Weights | Refusal:
    """Read the product of exponentials and values whose quotient with their sums stands for it."""
    if sinks is not None:
        return _sinks_weigh(call)
    product = read_product(versions, call, left=call.get("input"))
    if isinstance(product, Refusal):
        return product
    return Weights(replace(product, node=softmax.node), (call.node, softmax.node))


def weighs_values(versions: Versions, softmax: Softmax) -> bool:
    """Return whether the result of a softmax, however it is changed, is a factor of a product."""
    return softmax.product is not None or bool(products_below(versions, softmax.node, most=1))


def products_below(versions: Versions, weights: fx.Node, most: int = 8) -> set[fx.Node]:
    """Return the products that a tensor, however it is changed, is a factor of: some, if many."""
    own = tensor_of(weights)
    waiting, seen, found = [weights], set(), set()
    while waiting and own is not None and len(seen) < 4 * FURTHEST and len(found) < most:
        node = waiting.pop()
        call = versions.calls.get(node)
        is_item = call is not None and call.name == "setitem"
        value = tensor_of(call.get("input") if call is not None and is_item else node)
        is_vector = value is not None and value.ndim < 2
        if node in seen or (is_vector and node is not weights):
            continue
        seen.add(node)
        for reader in versions.readers[node]:
            call = versions.calls.get(reader)
            if call is None:
                continue
            if call.name in UNREAD or _weighs(versions, call, own):
                found.add(reader)
            elif call.name not in ("linear", "softmax", "sum", "mean", "topk"):
                waiting.append(reader)
    return found


def _weighs(versions: Versions, call: Call, weights: torch.Tensor) -> bool:
    """Whether a call is a product that weights may be a factor of: what it sums, element by
    element, is more than they are."""
    if call.name != "sum":
        return is_product(versions, call)
    value = tensor_of(call.get("input"))
    is_more = value is not None and not is_same((value.numel(),), (weights.numel(),))
    return is_more and is_product(versions, call)


def _summed(versions: Versions, call: Call) -> tuple[fx.Node, ...]:
    """The calls after one that multiplies weights with values element by element, or adds the
    dimension for that, down to the sum of those products; none where it does anything else."""
    nodes: list[fx.Node] = []
    while call.name != "sum":
        is_factor = insertion(versions, call.node) or call.name == "mul"
        readers = list(dict.fromkeys(versions.readers[call.node]))
        below = versions.calls.get(readers[0]) if len(readers) == 1 else None
        if not is_factor or below is None or len(nodes) > 1:
            return ()
        nodes.append(below.node)
        call = below
    return tuple(nodes) if nodes and is_product(versions, call) else ()


def _why_changed(versions: Versions, call: Call, places: Places) -> Refusal | None:
    """Why a call between softmax and product changes the weights; None if it does not."""
    keeps = keeps_rows if places.are_last else keeps_all
    if is_cast(versions, call.node) or keeps(versions, call.node):
        return None
    if call.name == "dropout":
        is_training = call.get("training", call.node.op == "call_function")
        return None if is_training is False else why_dropped(versions, call, call.get("p", 0.5))
    return _changed(call)


def why_dropped(versions: Versions, call: Call, given: object) -> Refusal | None:
    """Return that a call drops weights with the probability that it is given; None if none is."""
    p = number(versions, given)
    if p == 0:
        return None
    of = "" if p is None else f" of {p:g}"
    reason = f"Dropout{of} is active, and another kernel would draw other random numbers."
    return Refusal(call.node, "dropout", reason)


def _sinks_weigh(call: Call) -> Refusal:
    return Refusal(call.node, "sinks", "A column of scores that is no key weighs a value.")


def _changed(call: Call) -> Refusal:
    reason = f"{call.name} changes the weights before they meet the values."
    return Refusal(call.node, "weights_changed", reason)


def _read_by_others(versions: Versions, node: fx.Node, readers: list[fx.Node]) -> Refusal:
    """Name who reads weights beside their product, or all but one where each leads to products."""
    own = tensor_of(node)
    others = [one for one in readers if own is None or not _meets_values(versions, one, own)]
    is_result = any(one.op == "output" for one in readers)
    return weights_read(versions, node, readers if is_result else others or readers[1:] or readers)


def _meets_values(versions: Versions, reader: fx.Node, weights: torch.Tensor) -> bool:
    call = versions.calls.get(reader)
    is_product = call is not None and _weighs(versions, call, weights)
    return is_product or bool(products_below(versions, reader, most=1))
