"""Scores that are replaced by a number where a condition says so, or at places."""

from __future__ import annotations

import math

import torch
from torch import fx

from overlapc.graphs.attention.products.above import product_above
from overlapc.graphs.attention.reading.boxes import box, made_where
from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import Expression, expression
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.sinks import of_all
from overlapc.graphs.attention.scores.steps import Fill
from overlapc.graphs.attention.scores.walk import Walk, beside, is_scores, mask_of, overwritten
from overlapc.graphs.collectives import Refusal
from overlapc.planning.attention.fills import WEAKEST_FILL


def filled(walk: Walk, call: Call) -> fx.Node | Refusal | None:
    """Take up ``masked_fill`` or ``where`` of scores and a number; None where it is another
    function of them."""
    versions, node = walk.versions, call.node
    if call.name == "masked_fill":
        scores, fill, mask, is_kept = call.get("input"), call.get("value"), call.get("mask"), False
    else:
        mask, pair = call.get("condition"), (call.get("input"), call.get("other"))
        is_kept = is_scores(walk, node, pair[0])
        scores, fill = pair if is_kept else pair[::-1]
    value = _held(_number(versions, node, fill), node)
    kept = [arg for arg in (mask, scores, fill) if is_scores(walk, node, arg)]
    condition = mask_of(walk, call, mask)
    if kept != [scores] or value is None or condition is None:
        return None
    if call.in_place and call.get("input") is not scores:
        return overwritten(call)
    walk.steps.append(_fill(walk, condition, value, is_kept=is_kept))
    return scores


def _number(versions: Versions, reader: fx.Node, argument: object) -> float | None:
    """The number that an argument is, or all elements of a tensor are, whatever its sizes."""
    value = number(versions, argument)
    node = versions.read(reader, argument) if isinstance(argument, fx.Node) else None
    call = versions.calls.get(node) if node is not None else None
    if value is not None or call is None or call.in_place:
        return value
    if call.name != "mul":
        every, own = of_all(call), tensor_of(call.node)
        if every is None or own is None or not own.dtype.is_floating_point:
            return None
        return float(torch.tensor(every, dtype=own.dtype))
    one, other = (_number(versions, call.node, call.get(name)) for name in ("input", "other"))
    return None if one is None or other is None else one * other


def _held(value: float | None, scores: fx.Node) -> float | None:
    """A number as it is put into scores: beyond the range of their dtype it is infinite, where a
    call does not raise then, and one that hides keys has the bits that another mask has."""
    own = tensor_of(scores)
    if value is None or own is None or not own.dtype.is_floating_point:
        return value
    held = float(torch.tensor(value, dtype=own.dtype))
    return held if math.isinf(held) or held <= WEAKEST_FILL else value


def item_filled(walk: Walk, call: Call) -> fx.Node | Refusal:
    """Take up ``scores[condition] = number``, with nothing but whole dimensions before it, and
    numbers written to slices."""
    node, scores = call.node, call.get("input")
    value = _held(_number(walk.versions, node, call.get("value")), scores)
    condition, own = _condition(walk.versions, call), tensor_of(scores)
    if condition is None:
        condition = _box(walk.versions, call)
    if value is None or condition is None or own is None:
        reason = "Scores are written by an index that is no condition on them and no slice, or not "
        reason += "by a number."
        return Refusal(call.node, "hidden_write", reason)
    walk.steps.append(_fill(walk, beside(walk, condition, own), value, is_kept=False))
    return scores


def _fill(walk: Walk, condition: Expression, value: float, *, is_kept: bool) -> Fill:
    # It leaves nothing of what stands before it, not even where the factor is zero.
    scaled = value * walk.factor if walk.factor else math.nan
    if abs(scaled) > walk.reach:
        scaled = math.copysign(math.inf, scaled)
    return Fill(condition, scaled, is_kept)


def _box(versions: Versions, call: Call) -> Expression | None:
    """The booleans that an index of numbers and slices stands for, made where queries are."""
    product = product_above(versions, call.node, call.get("input"))
    made_of = made_where(versions, product) if product is not None else None
    return None if made_of is None else box(call, made_of)


def _condition(versions: Versions, call: Call) -> Expression | None:
    """The booleans by which an item is chosen, as they broadcast to what it is an item of."""
    index, whole = call.get("index"), tensor_of(call.get("input"))
    *before, last = index if isinstance(index, tuple | list) else (index,)
    found = expression(versions, call.node, last) if isinstance(last, fx.Node) else None
    is_after = all(part is Ellipsis or part == slice(None) for part in before)
    if found is None or whole is None or found.value.dtype != torch.bool or not is_after:
        return None
    behind = 0 if Ellipsis in before else whole.ndim - len(before) - len(found.shape)
    for _ in range(behind):
        found = found.then(torch.unsqueeze, -1)
    return found
