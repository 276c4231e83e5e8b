"""An attention that is spelled out, from its softmax, or why it is to stay as it is."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from overlapc.graphs.attention.latent import apart, latent_of_two
from overlapc.graphs.attention.layouts import (
    four_dimensional,
    is_dense,
    layout_is_read,
    merged_steps,
)
from overlapc.graphs.attention.masks.combined import Mask, read_mask
from overlapc.graphs.attention.masks.early import may_be_even, why_not_early
from overlapc.graphs.attention.masks.floors import without_floor
from overlapc.graphs.attention.masks.prefixes import prefix_of
from overlapc.graphs.attention.operands import checked, no_plain_tensors, why_empty
from overlapc.graphs.attention.products.matmuls import PRODUCT, SOFTMAX_DIM
from overlapc.graphs.attention.reading.idle import is_idle
from overlapc.graphs.attention.reading.naming import all_named
from overlapc.graphs.attention.reading.shapes import reads_shape
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import Expression, expression, is_cast, is_same
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.softmaxes import Softmax
from overlapc.graphs.attention.scores.upward import Scores, read_scores
from overlapc.graphs.attention.site import Attention
from overlapc.graphs.attention.weights import Weights, read_weights
from overlapc.graphs.attention.zeroed import with_zeros
from overlapc.graphs.collectives import Refusal

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Each holds the range of those before it."""


def match(versions: Versions, softmax: Softmax) -> Attention | Refusal | None:
    """Read the attention of a softmax that weighs values; None where its scores are no product."""
    own = tensor_of(softmax.node)
    if not isinstance(own, FakeTensor):
        return no_plain_tensors(softmax.node, (own,))
    scores = read_scores(versions, softmax)
    if scores is None:
        return None
    is_refused = isinstance(scores, Refusal) and scores.code == PRODUCT
    if not softmax.dim or (softmax.dim < -2 and is_refused):
        reason = "Its softmax is over another dimension than the keys, or overwrites its scores."
        return Refusal(softmax.node, SOFTMAX_DIM, reason)
    if isinstance(scores, Refusal):
        return scores
    sinks = scores.sinks if scores.sinks is None or scores.sinks.is_column else None
    weights = read_weights(versions, softmax, sinks, scores.places)
    if isinstance(weights, Refusal):
        return weights
    if (floorless := without_floor(versions, scores)) is not None:
        found = _assemble(versions, softmax, floorless, weights)
        if isinstance(found, Attention) and not (found.mask.dead and _is_trained(found)):
            return found
    return _assemble(versions, softmax, scores, weights)


def _is_trained(found: Attention) -> bool:
    return found.is_trained or found.mask.is_trained


def _assemble(
    versions: Versions, softmax: Softmax, scores: Scores, weights: Weights
) -> Attention | Refusal:
    found = _flattened(versions, softmax, scores, weights)
    if isinstance(found, Refusal):
        return found
    for two in apart(versions, scores):
        one = _flattened(versions, softmax, two.scores, weights)
        if isinstance(one, Attention) and (latent := latent_of_two(versions, one, two.rest)):
            found = replace(found, latent=latent)
            break
    found = checked(versions, found)
    # Last of all: who looks for what made operands looks past no cast of ours.
    return found if isinstance(found, Refusal) else found.cast(weights.product.dtype)


def _flattened(
    versions: Versions, softmax: Softmax, scores: Scores, weights: Weights
) -> Attention | Refusal:
    node, frame = weights.product.node, scores.frame
    calls = {*scores.nodes, *softmax.nodes, *weights.nodes}
    chain = tuple(sorted(calls, key=versions.index.__getitem__))
    refusal = (
        why_empty(node, scores.product.left, scores.product.right, weights.product.right)
        or _why_not_new(versions, chain)
        or _why_not_alone(versions, chain, node)
        or _why_not_dtypes(versions, softmax, scores, weights)
        or _why_not_batches(weights, frame)
        or why_not_early(versions, scores)
    )
    if refusal:
        return refusal
    sides = _sides(versions, scores, weights)
    if isinstance(sides, Refusal):
        return sides
    rows, keys = sides[0].shape[-2], sides[1].shape[-2]
    mask = _mask(versions, softmax, scores, weights, rows, keys)
    if isinstance(mask, Refusal):
        return mask
    flat = four_dimensional(versions, *sides, mask, frame)
    is_read = layout_is_read(versions, node)
    if is_read and not (is_dense(node, weights.product.order) or is_dense(node, ())):
        reason = "Somebody reads the strides of its result, which has gaps or an order of its own."
        return Refusal(node, "layout_read", reason)
    return Attention(
        node,
        query=flat.query,
        key=flat.key,
        value=flat.value,
        groups=flat.groups,
        scale=scores.factor,
        mask=flat.mask,
        chain=chain,
        frame=frame,
        batch=weights.product.batch,
        order=weights.product.order,
        is_contiguous=is_read,
        repeated=flat.repeated,
        length=prefix_of(versions, flat.mask, rows, keys),
        program=merged_steps(scores.program, frame),
        sinks=scores.sinks,
        rounds=scores.product.dtype == weights.product.dtype,
    )


def _sides(
    versions: Versions, scores: Scores, weights: Weights
) -> tuple[Expression, Expression, Expression] | Refusal:
    """Queries, keys and values of one dtype, ``[*frame, rows or keys, columns]``."""
    dtype, product = weights.product.dtype, scores.product
    sides = [product.left, product.right.transposed()]
    if product.dtype != dtype:
        sides = [_in_dtype(versions, side, dtype) for side in sides]
    query, key = (
        None if side is None else side.shaped(product.batch, scores.frame) for side in sides
    )
    if query is None or key is None:
        reason = "Queries and keys have another dtype than the values: cast to it they are read."
        return Refusal(weights.product.node, "mixed_dtypes", reason)
    return query, key, weights.product.right.shaped(weights.product.batch, scores.frame)


def _mask(
    versions: Versions, softmax: Softmax, scores: Scores, weights: Weights, rows: Any, keys: Any
) -> Mask | Refusal:
    """What is added to scores and hides them, of rows without a key as well."""
    zeroed = with_zeros(versions, scores, weights.zeroings)
    if isinstance(zeroed, Refusal):
        return zeroed
    is_even = may_be_even(versions, scores)
    mask = read_mask(versions, zeroed.masks, weights.product.dtype, rows, keys, may_be_even=is_even)
    if isinstance(mask, Refusal):
        return mask
    mask = zeroed.told(mask)
    reason = _why_not_dead(softmax, scores, mask, is_even=is_even or mask.may_be_even)
    return Refusal(weights.product.node, "dead_rows", reason) if reason else mask


def _why_not_dead(softmax: Softmax, scores: Scores, mask: Mask, *, is_even: bool) -> str:
    """Why rows that keep no key are not what torch's softmax makes of them; empty if they are."""
    if softmax.is_nan_where_dead and mask.dead == "nan":
        return (
            "A row that keeps no key is NaN, for its maximum is infinite, where a sink gives "
            "zeros: masked by a finite number, as by torch.finfo(dtype).min, it is read."
        )
    is_sum_zero = softmax.is_by_exp and softmax.sink is None and not scores.is_shifted
    if is_sum_zero and is_even:
        return (
            "Its exponentials of a row that keeps no key are zero, and so is their sum: less the "
            "row's maximum, as F.softmax has them, they are read."
        )
    if softmax.is_less_logarithm and is_even:
        return (
            "The logarithm of its sum is lost in the mask of a row that keeps no key: spelled by "
            "F.softmax it is read."
        )
    return ""


def _why_not_batches(weights: Weights, frame: tuple[Any, ...]) -> Refusal | None:
    if is_same((prod(weights.product.batch),), (prod(frame),)):
        return None
    reason = "Its values have more batches than its weights, which all of these share."
    return Refusal(weights.product.node, "value_batches", reason)


def _why_not_new(versions: Versions, chain: tuple[fx.Node, ...]) -> Refusal | None:
    """What a call leaves in memory that was there before is read there, by whoever reads that."""
    for node in chain:
        call = versions.calls.get(node)
        if call is not None and call.get("out") is not None:
            reason = f"{call.name} gives its result in a tensor that was there before (out=)."
            return Refusal(node, "hidden_write", reason)
    return None


def _why_not_alone(versions: Versions, chain: tuple[fx.Node, ...], last: fx.Node) -> Refusal | None:
    inside = set(chain)
    for node in chain:
        readers = [user for user in node.users if user not in inside and not is_idle(user)]
        others = [one for one in readers if not reads_shape(versions.calls.get(one), node)]
        if node is not last and others:
            is_told = any(one.op == "output" for one in others)
            who = "the caller" if is_told else all_named(versions, others)
            reason = f"Scores or weights are read by {who}, and have to be there for that."
            return Refusal(node, "scores_read", reason)
    return None


def _why_not_dtypes(
    versions: Versions, softmax: Softmax, scores: Scores, weights: Weights
) -> Refusal | None:
    for product in (scores.product, weights.product):
        value = tensor_of(product.node)
        sides = (product.left.value, product.right.value)
        if value is None or any(not isinstance(side, FakeTensor) for side in (value, *sides)):
            return no_plain_tensors(product.node, (value, *sides))
        if value.dtype not in DTYPES or any(side.dtype not in DTYPES for side in sides):
            return Refusal(product.node, "dtype", f"Attention in {value.dtype} has no kernel.")
        is_cast = versions.casts_to(product.node) == value.dtype
        is_wider = all(torch.promote_types(x.dtype, value.dtype) == value.dtype for x in sides)
        if not is_cast and not is_wider:
            reason = f"A product is {value.dtype} of wider operands, by no autocast that is read"
            remedy = "cast before it they are read"
            return Refusal(product.node, "product_dtype", f"{reason}: {remedy}.")
    return _why_not_range(softmax, scores, weights.product.dtype)


def _why_not_range(softmax: Softmax, scores: Scores, own: torch.dtype) -> Refusal | None:
    """Scores may only be widened: in a narrower dtype a mask that was finite may be infinite."""
    values = [tensor_of(node) for node in (*scores.nodes, softmax.node)]
    floats = [value.dtype for value in values if value is not None and value.dtype in DTYPES]
    widths = list(map(DTYPES.index, floats))
    if widths != sorted(widths):
        reason = (
            "Scores are narrowed before their softmax, where a finite mask may become infinite."
        )
        return Refusal(softmax.node, "narrowed_scores", reason)
    if DTYPES[widths[-1]] == torch.float64 != own:
        reason = "Its softmax is in float64, and torch's attention computes in float32."
        return Refusal(softmax.node, "wide_softmax", reason)
    return None


def _in_dtype(versions: Versions, side: Expression, dtype: torch.dtype) -> Expression | None:
    """A side in the dtype of the values, where it was widened from that: the same numbers."""
    if side.value.dtype == dtype:
        return side
    node = versions.read(*side.read[0])
    call = versions.calls.get(node) if node is not None else None
    if call is None or not is_cast(versions, call.node):
        return None
    base = expression(versions, call.node, call.get("input"))
    is_wider = torch.finfo(side.value.dtype).bits > torch.finfo(dtype).bits
    if base is None or base.value.dtype != dtype or not is_wider:
        return None
    return replace(base.replayed(side.calls), read=(*base.read, *side.read))
