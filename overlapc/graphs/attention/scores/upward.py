"""From a softmax up to the product of queries and keys: what is done to scores on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.graphs.attention.products.above import (
    FURTHEST,
    between,
    is_item_of_scores,
    may_be_scores,
    product_above,
    why_unread,
)
from overlapc.graphs.attention.products.matmuls import PRODUCT, Product, is_product, read_product
from overlapc.graphs.attention.products.places import Places, possible_places
from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    is_cast,
    is_dim,
    is_same,
    keeps_all,
    keeps_rows,
    order_of,
)
from overlapc.graphs.attention.reading.varying import column_number, is_varying
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.reading.written import read_rows
from overlapc.graphs.attention.scores.fills import filled, item_filled
from overlapc.graphs.attention.scores.functions import Function, trace_function
from overlapc.graphs.attention.scores.sinks import (
    Sinks,
    even_sinks,
    is_shift,
    of_one_number,
    read_sinks,
)
from overlapc.graphs.attention.scores.softmaxes import Softmax
from overlapc.graphs.attention.scores.steps import Bias, Fill, Step
from overlapc.graphs.attention.scores.walk import (
    HIDDEN,
    Walk,
    is_scores,
    mask_of,
    no_scores,
    overwritten,
)
from overlapc.graphs.collectives import Refusal
from overlapc.runtime.attention.masks import CannotLower

REGROUPING = ("view", "reshape", "flatten", "unflatten", "view_as")
"""Views that may put dimensions together, or take them apart, and keep the order of elements."""


@dataclass(frozen=True)
class Scores:
    """``softmax(program(factor * product) + masks)``, perhaps with sinks beside."""

    product: Product
    factor: float
    program: tuple[Step, ...]
    """Up to the last ``Function``, in the order in which they are applied."""
    masks: tuple[Bias | Fill, ...]
    """After that."""
    sinks: Sinks | None
    is_shifted: bool
    """The maximum of each row is subtracted, by the spelling itself and last of all."""
    frame: tuple[int | torch.SymInt, ...]
    """Sizes of batches of what the softmax reads."""
    places: Places
    """Of rows and keys, there."""
    nodes: tuple[fx.Node, ...]
    """From the product down to what the softmax reads, both among them."""
    before_shift: tuple[Step, ...] = ()
    """Those of its steps that such a subtraction stands behind, and then other steps."""


def read_scores(versions: Versions, softmax: Softmax) -> Scores | Refusal | None:
    """Walk up from a softmax; None where no product stands above it."""
    source = softmax.scores
    node = read_rows(versions, softmax.reader, source)
    if node is None:
        return Refusal(softmax.node, "hidden_write", HIDDEN)
    if not is_item_of_scores(versions, node) and not may_be_scores(versions, node):
        why = why_unread(versions, node)
        return Refusal(node, PRODUCT, why) if why else None
    value = tensor_of(source)
    assert value is not None
    is_through_view = versions.read(softmax.reader, source) is None
    refusals = []
    for places in possible_places(value.ndim, softmax.dim or -1):
        if is_through_view and not places.are_last:
            break
        walk = Walk(
            versions, places.batch(value.shape), softmax.factor, places=places, even=softmax.sink,
            is_column=softmax.sink is None,
        )  # fmt: skip
        found = _walked(versions, node, walk)
        if not isinstance(found, Refusal):
            return replace(found, places=places)
        refusals.append(found)
        if found.code != PRODUCT:
            break
    return refusals[0] if refusals else Refusal(softmax.node, "hidden_write", HIDDEN)


def _walked(versions: Versions, node: fx.Node, walk: Walk) -> Scores | Refusal:
    for _ in range(FURTHEST):
        walk.nodes.append(node)
        call = versions.calls[node]
        if is_product(versions, call):
            return _ended(walk, call)
        step = _step(walk, call)
        if isinstance(step, Refusal):
            return step
        seen = (read_rows if walk.places.are_last else Versions.read)(versions, node, step)
        if seen is None:
            return Refusal(node, "hidden_write", HIDDEN)
        node = seen
    return Refusal(node, "far_product", f"Over {FURTHEST} calls stand between product and softmax.")


def _step(walk: Walk, call: Call) -> fx.Node | Refusal:
    """Take up what one call does to the scores; return the tensor of scores that it is done to."""
    versions, node = walk.versions, call.node
    source = call.get("input")
    keeps = keeps_rows if walk.places.are_last else keeps_all
    if is_cast(versions, node) or keeps(versions, node):
        return source
    if _regroups(walk, call):
        return source
    before = walk.places.before(order_of(versions, node))
    if before and walk.parted is None:
        walk.places = before
        return source
    if call.name in ("add", "sub", "mul", "div") and not call.get("rounding_mode"):
        return _arithmetic(walk, call)
    if call.name == "neg":
        walk.factor *= -1
        return source
    if call.name in ("masked_fill", "where"):
        found = filled(walk, call)
        return _applied(walk, call) if found is None else found
    if call.name == "setitem" and walk.parted is None:
        return item_filled(walk, call)
    if call.name in ("cat", "pad") and walk.parted is None:
        return _with_sinks(walk, call)
    return _applied(walk, call)


def _regroups(walk: Walk, call: Call) -> bool:
    """Take up a view that makes one dimension of those of rows, and one of those of keys, or that
    makes them of one; return whether a call is one."""
    own, source = tensor_of(call.node), tensor_of(call.get("input"))
    if call.in_place or call.name not in REGROUPING or own is None or source is None:
        return False
    if not walk.places.is_usual or own.dtype != source.dtype:
        return False
    joined = own if walk.parted is None else tensor_of(walk.parted)
    assert joined is not None
    is_one = source.ndim > 1 and is_same(tuple(source.shape[-2:]), tuple(joined.shape[-2:]))
    walk.parted = None if is_one else walk.parted or call.node
    return True


def _regrouped(call: Call, why: str) -> Refusal:
    sizes = [tensor_of(node) for node in (call.get("input"), call.node)]
    one, other = (list(value.shape) if value is not None else "others" for value in sizes)
    reason = f"{call.name} regroups scores of {one} as {other}, {why}"
    return Refusal(call.node, "score_function", reason)


def _with_sinks(walk: Walk, call: Call) -> fx.Node | Refusal:
    value = tensor_of(call.node)
    is_pad = call.name == "pad"
    if value is None or (not is_pad and not is_dim(value, call.get("dim", 0), walk.dim)):
        return no_scores(call)
    found = None
    if not walk.steps and walk.sinks is None and walk.even is None and walk.places.are_last:
        if (even := even_sinks(walk.versions, call, walk.dim)) is not None:
            walk.even = even.value * walk.factor
            walk.is_first = even.is_first
            walk.nodes.extend(even.nodes)
            return even.scores
        if not is_pad:
            found = read_sinks(walk.versions, call, walk.frame, walk.dim)
    if found is None:
        reason = "A column that is no key takes part in the softmax, and is no number of each head."
        return Refusal(call.node, "sinks", reason)
    source, sinks = found
    walk.sinks = replace(sinks, factor=walk.factor)
    return source


def _applied(walk: Walk, call: Call) -> fx.Node | Refusal:
    """Take up a function of scores; go on from its operand, or from the product if it has more."""
    versions, node = walk.versions, call.node
    if call.name in REGROUPING:
        why = "where the softmax is not over all keys of each row: over these it is read."
        return _regrouped(call, why)
    if walk.parted is not None:
        return no_scores(call)
    operands = [s for s in node.all_input_nodes if is_scores(walk, node, s)]
    operands.sort(key=_is_condition)
    product = product_above(versions, node, operands[0]) if operands else None
    if product is None or (call.in_place and call.get("input") not in operands):
        return no_scores(call)
    nodes = between(versions, product, node)
    own = [s for s in operands if versions.read(node, s) in (product, *nodes)]
    if not own:
        return Refusal(node, "hidden_write", HIDDEN)
    seen = versions.read(node, own[0])
    if len(own) == 1 and seen is not None:
        base, source, nodes = seen, own[0], [node]
    else:
        base = source = product
    try:
        found = trace_function(versions, base, nodes, lambda c, arg: mask_of(walk, c, arg))
    except (CannotLower, RuntimeError, TypeError, ValueError, LookupError) as error:
        return no_scores(call, f", and no kernel can: {error}")
    walk.nodes.extend(one for one in reversed(nodes) if one is not node)
    walk.steps.append(found.scaled(walk.factor))
    walk.factor, walk.reach = 1.0, math.inf
    return source


def _is_condition(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.dtype == torch.bool


def _arithmetic(walk: Walk, call: Call) -> fx.Node | Refusal:
    pair = call.get("input"), call.get("other")
    kept = [arg for arg in pair if is_scores(walk, call.node, arg)]
    if not kept or _is_made_of_one(walk.versions, call.node, kept):
        return _applied(walk, call)
    scores, is_first = kept[0], kept[0] is pair[0]
    other = pair[1] if is_first else pair[0]
    if call.in_place and not is_first:
        return overwritten(call)
    value = _number(walk.versions, call, scores, other)
    alpha = call.get("alpha", 1)
    if call.name == "mul" and value is not None:
        return _scaled(walk, call, scores, value)
    if call.name == "div" and value and is_first:
        return _scaled(walk, call, scores, 1 / value)
    if call.name in ("mul", "div") or not isinstance(alpha, int | float):
        return _applied(walk, call)
    sign = -1.0 if call.name == "sub" else 1.0
    if value is not None and math.isfinite(value):  # what all scores share changes no softmax
        if not walk.is_free:
            return _applied(walk, call)
        walk.factor *= 1.0 if is_first else sign * alpha
        return scores
    if call.name == "sub" and is_first and alpha == 1 and walk.is_free and walk.parted is None:
        shifting = is_shift(walk.versions, call.node, scores, other, walk.dim)
        if shifting:
            walk.nodes.extend(shifting)
            walk.is_shifted = walk.is_shifted or not walk.steps
            walk.between = walk.between or len(walk.steps)
            return scores
    bias = mask_of(walk, call, other)
    if bias is None:
        return _applied(walk, call)
    on_bias, on_scores = (sign * alpha, 1.0) if is_first else (1.0, sign * alpha)
    walk.steps.append(Bias(bias, walk.factor * on_bias))
    walk.factor *= on_scores
    return scores


def _scaled(walk: Walk, call: Call, scores: fx.Node, factor: float) -> fx.Node:
    own = tensor_of(call.node)
    if own is not None and own.dtype.is_floating_point:
        walk.reach = min(walk.reach, torch.finfo(own.dtype).max * abs(walk.factor))
    walk.factor *= factor
    return scores


def _number(versions: Versions, call: Call, scores: fx.Node, argument: object) -> float | None:
    value = number(versions, argument)
    if value is not None or not is_varying(argument):
        return value
    product = product_above(versions, call.node, scores)
    value = None if product is None else column_number(argument, product)
    if value is not None:
        versions.assumed.add(argument)
    return value


def _is_made_of_one(versions: Versions, reader: fx.Node, operands: list[fx.Node]) -> bool:
    """Whether two operands are made of the same product."""
    products = [product_above(versions, reader, one) for one in operands]
    return len(products) > 1 and len(set(products)) == 1


def _ended(walk: Walk, call: Call) -> Scores | Refusal:
    if walk.parted is not None:
        why = "and their product has rows or keys in several dimensions: in one each they are read."
        return _regrouped(walk.versions.calls[walk.parted], why)
    product = read_product(walk.versions, call, places=walk.places)
    if isinstance(product, Refusal):
        return product
    walk.nodes.extend(reversed(product.inner))
    if product.added is not None:
        bias = mask_of(walk, call, product.added)
        if bias is None:
            return no_scores(call)
        if walk.versions.casts_to(call.node) == product.dtype:
            bias = bias.cast(product.dtype)
        walk.steps.append(Bias(bias, walk.factor * product.beta))
    sinks = walk.sinks
    if walk.even is not None:
        heads = math.prod(walk.frame[1:] or walk.frame)  # as they are merged for a kernel
        sinks = Sinks(of_one_number(product.left, heads), walk.is_first, walk.even, walk.is_column)
    factor = walk.factor * product.alpha
    if not math.isfinite(factor):
        reason = f"Scores are multiplied by {factor:g}: by a finite number they are read."
        return Refusal(call.node, "scale", reason)
    steps, nodes = walk.steps[::-1], tuple(reversed(walk.nodes))
    functions = [at for at, step in enumerate(steps, 1) if isinstance(step, Function)]
    end = functions[-1] if functions else 0
    masks = tuple(step for step in steps[end:] if not isinstance(step, Function))
    product = replace(product, added=None)
    before_shift = tuple(steps[: -walk.between]) if walk.between else ()
    return Scores(
        product, factor, tuple(steps[:end]), masks, sinks, walk.is_shifted, walk.frame,
        walk.places, nodes, before_shift,
    )  # fmt: skip
