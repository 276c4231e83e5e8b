"""From a softmax up to the product of queries and keys: what is done to scores on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from overlapc.graphs.attention.constants import number
from overlapc.graphs.attention.products import NAMES, Product, read_product
from overlapc.graphs.attention.spelling import Call, tensor_of
from overlapc.graphs.attention.tensors import Expression, expression, is_cast, is_same, keeps_rows
from overlapc.graphs.attention.versions import Versions
from overlapc.graphs.collectives import Refusal

FURTHEST = 24
"""Calls between a product and its softmax: chosen, three times what any model in the tests has."""

HIDDEN = "Scores are written through another view of them."


@dataclass(frozen=True)
class Bias:
    """``scores + factor * tensor``, in terms of what the softmax reads."""

    tensor: Expression
    factor: float


@dataclass(frozen=True)
class Fill:
    """``where(condition, scores, value)``, or with the two exchanged."""

    condition: Expression
    value: float
    """In terms of what the softmax reads."""
    is_kept: bool
    """Scores stay where ``condition`` is true."""


@dataclass(frozen=True)
class Scores:
    """``softmax(factor * product + masks)``."""

    product: Product
    factor: float
    masks: tuple[Bias | Fill, ...]
    """In the order in which they are applied, each in the batch dimensions of ``frame``."""
    frame: tuple[int | torch.SymInt, ...]
    """Leading sizes of what the softmax reads."""
    nodes: tuple[fx.Node, ...]
    """From the product down to what the softmax reads, both among them."""


@dataclass
class _Walk:
    versions: Versions
    frame: tuple[int | torch.SymInt, ...]
    factor: float = 1.0
    masks: list[Bias | Fill] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)


def read_scores(versions: Versions, softmax: Call) -> Scores | Refusal | None:
    """Walk up from a softmax; None where no product stands above it."""
    source = softmax.get("input")
    node = versions.read(softmax.node, source) if isinstance(source, fx.Node) else None
    if node is None:
        return Refusal(softmax.node, "hidden_write", HIDDEN)
    if not leads_to_product(versions, node):
        return None
    value = tensor_of(source)
    assert value is not None
    walk = _Walk(versions, tuple(value.shape[:-2]))
    for _ in range(FURTHEST):
        walk.nodes.append(node)
        call = versions.calls[node]
        if call.name in NAMES:
            return _ended(walk, call)
        step = _step(walk, call)
        if isinstance(step, Refusal):
            return step
        seen = versions.read(node, step)
        if seen is None:
            return Refusal(node, "hidden_write", HIDDEN)
        node = seen
    return Refusal(node, "far_product", f"Over {FURTHEST} calls stand between product and softmax.")


def leads_to_product(versions: Versions, node: fx.Node) -> bool:
    """Return whether a product of matrices stands above a node, with no reduction in between."""
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
        waiting.extend(s for s in sources if s is not None and _could_be_scores(s, value))
    return False


def _could_be_scores(source: fx.Node, value: torch.Tensor) -> bool:
    """Whether ``value`` may be made of scores ``source``: of as many, or of all but sinks."""
    own = tensor_of(source)
    if own is None or own.ndim < 2 or value.ndim < 2 or not own.dtype.is_floating_point:
        return False
    one, all_but_sinks = (own.numel(), own.shape[-1] + 1), (value.numel(), value.shape[-1])
    return any(is_same((a,), (b,)) for a, b in zip(one, all_but_sinks, strict=True))


def _step(walk: _Walk, call: Call) -> fx.Node | Refusal:
    """Take up what one call does to the scores; return the tensor of scores that it is done to."""
    versions, node = walk.versions, call.node
    source = call.get("input")
    if is_cast(versions, node) or keeps_rows(versions, node):
        return source
    if call.name in ("add", "sub", "mul", "div") and not call.get("rounding_mode"):
        return _arithmetic(walk, call)
    if call.name == "neg":
        walk.factor *= -1
        return source
    if call.name in ("masked_fill", "where"):
        return _filled(walk, call)
    if call.name == "cat":
        return Refusal(node, "sinks", "A column that is no key takes part in the softmax.")
    return _no_scores(call)


def _arithmetic(walk: _Walk, call: Call) -> fx.Node | Refusal:
    pair = call.get("input"), call.get("other")
    kept = [arg for arg in pair if _is_scores(walk.versions, call.node, arg)]
    if not kept:
        return _no_scores(call)
    scores, is_first = kept[0], kept[0] is pair[0]
    other = pair[1] if is_first else pair[0]
    if call.in_place and not is_first:
        return _overwritten(call)
    value = number(walk.versions, other)
    alpha = call.get("alpha", 1)
    if call.name == "mul" and value is not None:
        walk.factor *= value
        return scores
    if call.name == "div" and value and is_first:
        walk.factor /= value
        return scores
    if call.name in ("mul", "div") or not isinstance(alpha, int | float):
        return _no_scores(call)
    sign = -1.0 if call.name == "sub" else 1.0
    if value is not None and math.isfinite(value):  # what all scores share changes no softmax
        walk.factor *= 1.0 if is_first else sign * alpha
        return scores
    bias = _mask(walk, call, other)
    if bias is None:
        return _no_scores(call)
    on_bias, on_scores = (sign * alpha, 1.0) if is_first else (1.0, sign * alpha)
    walk.masks.append(Bias(bias, walk.factor * on_bias))
    walk.factor *= on_scores
    return scores


def _filled(walk: _Walk, call: Call) -> fx.Node | Refusal:
    versions, node = walk.versions, call.node
    if call.name == "masked_fill":
        scores, fill, mask, is_kept = call.get("input"), call.get("value"), call.get("mask"), False
    else:
        mask, pair = call.get("condition"), (call.get("input"), call.get("other"))
        is_kept = _is_scores(versions, node, pair[0])
        scores, fill = pair if is_kept else pair[::-1]
    value, condition = number(versions, fill), _mask(walk, call, mask)
    if not _is_scores(versions, node, scores) or value is None or condition is None:
        return _no_scores(call)
    if call.in_place and call.get("input") is not scores:
        return _overwritten(call)
    # A fill leaves nothing of what stands before it, not even where the factor is zero.
    scaled = value * walk.factor if walk.factor else math.nan
    walk.masks.append(Fill(condition, scaled, is_kept))
    return scores


def _is_scores(versions: Versions, reader: fx.Node, argument: object) -> bool:
    own, result = tensor_of(argument), tensor_of(reader)
    if not isinstance(argument, fx.Node) or own is None or result is None:
        return False
    seen = versions.read(reader, argument)
    is_whole = is_same(tuple(own.shape), tuple(result.shape))
    return seen is not None and is_whole and leads_to_product(versions, seen)


def _mask(walk: _Walk, call: Call, argument: object) -> Expression | None:
    """A tensor added to scores, or that says which of them stay, as it broadcasts to ``frame``."""
    value = tensor_of(call.node)
    if not isinstance(argument, fx.Node) or value is None:
        return None
    found, batch = expression(walk.versions, call.node, argument), tuple(value.shape[:-2])
    if found is None or is_same(batch, walk.frame):
        return found
    if len(found.shape) < 2 or all(is_same((size,), (1,)) for size in found.shape[:-2]):
        ones = tuple(range(len(found.shape) - 2))
        return found.then(torch.squeeze, ones) if ones else found
    return found.shaped(batch, walk.frame)


def _ended(walk: _Walk, call: Call) -> Scores | Refusal:
    product = read_product(walk.versions, call)
    if isinstance(product, Refusal):
        return product
    if product.order:
        return Refusal(
            call.node, "score_layout", "Its scores are not laid out as [..., rows, keys]."
        )
    if product.added is not None:
        bias = _mask(walk, call, product.added)
        if bias is None:
            return _no_scores(call)
        walk.masks.append(Bias(bias, walk.factor * product.beta))
    factor = walk.factor * product.alpha
    if not math.isfinite(factor):
        return _no_scores(call)
    masks, nodes = tuple(reversed(walk.masks)), tuple(reversed(walk.nodes))
    return Scores(replace(product, added=None), factor, masks, walk.frame, nodes)


def _no_scores(call: Call) -> Refusal:
    reason = f"{call.name} stands between product and softmax, which torch's attention cannot do."
    return Refusal(call.node, "score_function", reason)


def _overwritten(call: Call) -> Refusal:
    reason = f"{call.name} writes scores over a tensor that is not theirs."
    return Refusal(call.node, "mutated_operand", reason)
