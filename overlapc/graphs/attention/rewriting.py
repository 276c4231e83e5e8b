"""Puts torch's fused attention in the place of one that is spelled out. It chooses nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.attention.layouts import is_dense
from overlapc.graphs.attention.reading.idle import erase_idle
from overlapc.graphs.attention.reading.shapes import give_shapes
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import Expression, is_same
from overlapc.graphs.attention.reading.varying import inferred
from overlapc.graphs.attention.scores.scales import TensorScale
from overlapc.graphs.attention.scores.steps import Bias, Fill
from overlapc.graphs.attention.site import Attention, Fused
from overlapc.graphs.values import hint_of, value_of
from overlapc.planning.attention.fills import FINITE_FILL, WEAKEST_FILL


def fuse(graph: fx.Graph, found: Attention) -> None:
    """Let one call of ``F.scaled_dot_product_attention`` give the result, and erase the chain."""
    node = found.node
    with graph.inserting_before(node):
        sides = (found.query, found.key, found.value)
        query, *cache = (_side_by_side(side).emit(graph) for side in sides)
        query, factor = _scaled(graph, query, found.tensor_scale)
        scale = found.scale * factor
        if found.mask.says == "causal" and scale <= 0:
            query, scale = _turned(graph, query, scale)
        mask = _mask(graph, found)
        mask = mask if mask is None else _for_fused(graph, mask)
        named = {
            "attn_mask": mask,
            "is_causal": found.mask.says == "causal",
            "scale": scale,
            "enable_gqa": found.groups > 1,
        }
        result = add_call(graph, F.scaled_dot_product_attention, (query, *cache), node, named)
        if found.mask.dead == "nan" and mask is not None:
            result = _poisoned(graph, result, mask)
        result = as_spelled(result, found).emit(graph)
    take_out(graph, found, result)


def _side_by_side(side: Expression) -> Expression:
    """An operand as fused kernels read it: its columns beside one another."""
    is_strided = hint_of(side.value.stride(-1)) != 1
    return side.then(torch.Tensor.contiguous) if is_strided else side


def take_out(graph: fx.Graph, found: Attention, result: fx.Node) -> None:
    """Let all read ``result``, and erase the chain that gave it."""
    inner = [node for node in found.chain if node is not found.node]
    for node in inner:
        erase_idle(graph, node)
    give_shapes(graph, inner)
    found.node.replace_all_uses_with(result)
    for dead in reversed(found.chain):
        if not dead.users:
            graph.erase_node(dead)


def take_heads_once(graph: fx.Graph, found: Fused) -> None:
    """Let a call of torch's attention read keys and values whose heads are not repeated."""
    node = found.node
    with graph.inserting_before(node):
        once = [side.emit(graph) for side in (found.key, found.value)]
    for old, new in zip(_keys_and_values(node), once, strict=True):
        node.replace_input_with(old, new)
    node.update_kwarg("enable_gqa", True)


def _keys_and_values(node: fx.Node) -> list[fx.Node]:
    names = ("query", "key", "value")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return [given["key"], given["value"]]


def _scaled(graph: fx.Graph, query: fx.Node, scale: TensorScale | None) -> tuple[fx.Node, float]:
    """Queries times a scale that is a tensor, and what number scores are to be multiplied by."""
    if scale is None:
        return query, 1.0
    function = torch.div if scale.divides else torch.mul
    return _call(graph, function, query, scale.tensor.emit(graph), like=query), scale.factor


def _turned(graph: fx.Graph, query: fx.Node, scale: float) -> tuple[fx.Node, float]:
    """Queries whose products are scaled by a positive number: torch's kernel for processors scales
    after it has put minus infinity where a later key is."""
    sign, size = (-1.0, -scale) if scale else (0.0, 1.0)
    return _call(graph, torch.mul, query, sign, like=query), size


def _mask(graph: fx.Graph, found: Attention) -> fx.Node | None:
    """The masks as one tensor: booleans where they only leave keys out, else what is added."""
    parts = found.mask.parts
    if len(parts) == 1 and isinstance(parts[0], Fill) and parts[0].value == -math.inf:
        kept = parts[0].condition.emit(graph)
        return kept if parts[0].is_kept else _call(graph, torch.logical_not, kept, like=kept)
    total: fx.Node | None = None
    for part in parts:
        if isinstance(part, Bias):
            added = part.tensor.emit(graph)
            if part.factor != 1:  # scores are scaled with it in their own dtype
                added = _in_kernel_dtype(graph, added, found.query.value.dtype)
                added = _call(graph, torch.mul, added, part.factor, like=added)
            total = added if total is None else _call(graph, torch.add, total, added, like=added)
        else:
            total = _filled(graph, part, total, found)
    return None if total is None else _in_kernel_dtype(graph, total, found.query.value.dtype)


def _for_fused(graph: fx.Graph, mask: fx.Node) -> fx.Node:
    """Bring a mask to two dimensions or four, its keys side by side: torch's fused kernels take no
    other, and none of its attentions takes a number."""
    value = value_of(mask)
    if value.requires_grad and not torch.is_grad_enabled():
        mask = _call(graph, torch.Tensor.detach, mask, like=mask)  # else torch takes products
    for _ in range({0: 2, 1: 1, 3: 1}.get(value.ndim, 0)):
        mask = _call(graph, torch.unsqueeze, mask, 0, like=mask)
    is_side_by_side = value.ndim == 0 or any(
        is_same((size,), (1,)) for size in (value.shape[-1], value.stride(-1))
    )
    return mask if is_side_by_side else _call(graph, torch.Tensor.contiguous, mask, like=mask)


def _in_kernel_dtype(graph: fx.Graph, mask: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Bring a mask to a dtype that the kernel adds to queries of ``dtype``, losing nothing."""
    own = value_of(mask).dtype
    wanted = torch.promote_types(own, dtype)
    return mask if own == wanted else _call(graph, torch.Tensor.to, mask, wanted, like=mask)


def _filled(graph: fx.Graph, part: Fill, total: fx.Node | None, found: Attention) -> fx.Node:
    """What the masks before a fill add, and then it. Which of several finite ones is the least
    tells what a row of them gives: there a fill has all its bits, and not those of 16."""
    condition = part.condition.emit(graph)
    dtype, device = found.query.value.dtype, found.query.value.device
    value = min(part.value, FINITE_FILL)
    if value > -math.inf:
        if len(found.mask.parts) > 1:
            dtype = torch.promote_types(dtype, torch.float32)
        value = max(value, torch.finfo(dtype).min)
    fill = _call(graph, torch.full, (), value, like=condition, dtype=dtype, device=device)
    if total is None:
        total = _call(graph, torch.zeros, (), like=condition, dtype=dtype, device=device)
    else:
        total = _in_kernel_dtype(graph, total, dtype)
        fill = _as_weak(graph, part.value, fill, total)
    pair = (total, fill) if part.is_kept else (fill, total)
    return _call(graph, torch.where, condition, *pair, like=condition)


def _as_weak(graph: fx.Graph, value: float, lower: fx.Node, total: fx.Node) -> fx.Node:
    """Return ``lower`` for a fill in which scores may not be lost; in rows of which masks hide by
    such numbers too, itself, which is more or less than they are."""
    if value <= FINITE_FILL:
        return lower
    weak = _call(graph, torch.le, total, WEAKEST_FILL, like=total)
    strong = _call(graph, torch.lt, total, FINITE_FILL, like=total)
    others = _call(graph, torch.gt, weak, strong, like=total)
    has_others = _call(graph, torch.any, others, -1, True, like=total)
    return _call(graph, torch.where, has_others, value, lower, like=lower)


def _poisoned(graph: fx.Graph, result: fx.Node, mask: fx.Node) -> fx.Node:
    """Give rows that keep no key the NaN that eager gives them."""
    value = tensor_of(mask)
    assert value is not None
    if value.dtype == torch.bool:
        off = _call(graph, torch.logical_not, mask, like=mask)
    else:
        off = _call(graph, torch.eq, mask, -math.inf, like=mask)
    dead = _call(graph, torch.all, off, -1, True, like=mask)
    return _call(graph, torch.masked_fill, result, dead, math.nan, like=result)


def as_spelled(result: fx.Node, found: Attention) -> Expression:
    """Bring ``[batch, heads, rows, dim]`` to the dimensions, order and layout of the old result."""
    given = Expression(result, value_of(result))
    for _ in range(2 - len(found.frame)):
        given = given.then(torch.squeeze, 0)
    if len(found.frame) > 2:
        given = given.then(torch.unflatten, 1, inferred(found.frame[1:]))
    given = given.shaped(found.frame, found.batch)
    if found.is_contiguous and is_dense(found.node, found.order):
        given = _contiguous(given)
    given = given.permuted(found.order) if found.order else given
    is_exchanged = found.is_contiguous and not is_dense(found.node, found.order)
    return _contiguous(given) if is_exchanged else given


def _contiguous(given: Expression) -> Expression:
    return given if given.value.is_contiguous() else given.then(torch.Tensor.contiguous)


def _call(
    graph: fx.Graph, function: object, *args: object, like: fx.Node, **named: object
) -> fx.Node:
    return add_call(graph, function, args, like, named)
