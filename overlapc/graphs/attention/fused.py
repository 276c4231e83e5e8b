"""A call of torch's own attention, as it stands and as what it stands for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensor

from overlapc.graphs.attention.calling import read_arguments
from overlapc.graphs.attention.layouts import (
    four_dimensional,
    is_plain,
    layout_is_read,
    takes_groups,
)
from overlapc.graphs.attention.masks.prefixes import prefix_of
from overlapc.graphs.attention.operands import checked, no_plain_tensors, why_empty
from overlapc.graphs.attention.products.matmuls import PRODUCT
from overlapc.graphs.attention.products.repeats import is_broadcast, unrepeated
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import Expression, expression, is_same
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.site import Attention, Fused
from overlapc.graphs.attention.unfused import why_unfused
from overlapc.graphs.collectives import Refusal


def read_fused(versions: Versions, call: Call) -> Attention | Fused | Refusal:
    """Read a call of ``scaled_dot_product_attention``, or say why it is to stay unread.

    One that torch has no fused kernel for is an attention like those that are spelled out."""
    names = ("query", "key", "value")
    sides = [expression(versions, call.node, call.get(name), as_memory=True) for name in names]
    query, key, value = sides
    if query is None or key is None or value is None:
        return Refusal(call.node, PRODUCT, "An operand is no tensor.")
    result = tensor_of(call.node)
    unfused = why_unfused(call, *(_as_called(side, result) for side in (query, key, value)))
    spelled = _as_spelled_out(versions, call, query, key, value)
    if unfused and isinstance(spelled, Attention):
        return replace(spelled, unfused=unfused)
    copies = not is_broadcast(key)
    key, groups = unrepeated(versions, key)
    value, others = unrepeated(versions, value)
    is_grouped = call.get("enable_gqa") is True or not copies
    has_mask = call.get("attn_mask") is not None
    is_alike = groups == others and is_same(key.shape[:2], value.shape[:2])
    if unfused or is_grouped or not is_alike or not takes_groups(query, has_mask):
        groups = 1
    for side in (key, value):
        for reader, source in side.read:
            if groups > 1 and versions.changes(source, after=reader, before=call.node):
                groups = 1
    query, key, value = (_as_called(side, result) for side in (query, key, value))
    return Fused(call.node, query, key, value, groups, spelled, unfused)


def _as_called(side: Expression, result: torch.Tensor | None) -> Expression:
    """An operand as torch's attention has it: under autocast the call casts it."""
    return side if result is None else side.cast(result.dtype)


def _as_spelled_out(
    versions: Versions, call: Call, query: Expression, key: Expression, value: Expression
) -> Attention | Refusal:
    """A call of torch's attention as the softmax and products that it stands for."""
    sides = (query, key, value)
    if any(not isinstance(side.value, FakeTensor) for side in sides):
        return no_plain_tensors(call.node, [side.value for side in sides])
    empty = why_empty(call.node, *sides)
    if empty:
        return empty
    said = read_arguments(versions, call, query, key)
    if isinstance(said, Refusal):
        return said
    frame = query.shape[:-2]
    mask, groups, repeated = said.mask, said.groups, None
    if groups == 1:
        flat = four_dimensional(versions, query, key, value, mask, frame)
        query, key, value, mask = flat.query, flat.key, flat.value, flat.mask
        groups, repeated = flat.groups, flat.repeated
    is_read, result = layout_is_read(versions, call.node), tensor_of(call.node)
    if not is_same(value.shape[:-2], key.shape[:-2]) or (
        result is not None and not is_same(tuple(result.shape[:-2]), frame)
    ):
        reason = "Its values or its mask have batches or heads that broadcast."
        return Refusal(call.node, "batch_dims", reason)
    if result is None or (is_read and not is_plain(result)):
        reason = "Somebody reads the strides of its result, which has gaps or an order of its own."
        return Refusal(call.node, "layout_read", reason)
    found = Attention(
        call.node,
        query,
        key,
        value,
        groups,
        said.scale,
        mask,
        (call.node,),
        frame,
        frame,
        (),
        is_read and result.is_contiguous(),
        repeated,
        prefix_of(versions, mask, query.shape[-2], key.shape[-2]),
    )
    found = checked(versions, found)
    return found if isinstance(found, Refusal) else found.cast(result.dtype)
