"""Between the dimensions of a graph's attention and torch's ``[batch, heads, rows, dim]``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.masks.combined import Mask
from overlapc.graphs.attention.products.repeats import unrepeated
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import PERMUTATIONS, Expression, is_same
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.functions import Function
from overlapc.graphs.attention.scores.steps import Step, with_tensors
from overlapc.runtime.planned_devices import planned_device

MOVING = (*PERMUTATIONS, "to", "type", "float", "type_as", "clone", "reshape", "flatten")
"""Calls that may hand on the strides that they find; who reads them is asked in turn."""
BLIND = ("contiguous", "linear", "matmul", "bmm", "einsum", "addmm", "layer_norm")
"""Calls that give the same whatever the strides of their input."""


@dataclass(frozen=True)
class Flat:
    """Operands of four dimensions, and masks that broadcast to four."""

    query: Expression
    key: Expression
    value: Expression
    groups: int
    mask: Mask
    repeated: tuple[Expression, Expression] | None = None
    """Keys and values as the graph repeats their heads; None where it does not."""


def four_dimensional(
    versions: Versions,
    query: Expression,
    key: Expression,
    value: Expression,
    mask: Mask,
    frame: tuple[Any, ...],
) -> Flat:
    """Bring operands in the batch dimensions ``frame`` to two, heads that are shared taken once."""
    if len(frame) > 2:
        return _merged(query, key, value, mask, frame)
    for _ in range(2 - len(frame)):
        query, key, value = (side.then(torch.unsqueeze, 0) for side in (query, key, value))
    once, groups = unrepeated(versions, key)
    values_once, others = unrepeated(versions, value)
    is_alike = groups == others and is_same(once.shape[:2], values_once.shape[:2])
    if not is_alike or groups == 1:
        return Flat(query, key, value, 1, mask)
    return Flat(query, once, values_once, groups, mask, (key, value))


def takes_groups(query: Expression, has_mask: bool) -> bool:
    """Return whether a fused kernel of torch's takes heads of keys that queries share.

    On GPUs none takes them beside a mask, and the unfused path would store all scores. Kernels of
    our own always do.
    """
    return planned_device(query.value.device.type) == "cpu" or not has_mask


def _merged(
    query: Expression, key: Expression, value: Expression, mask: Mask, frame: tuple[Any, ...]
) -> Flat:
    """Merge all batch dimensions but the first: heads, and the queries that share one."""
    parts = tuple(
        step for step in merged_steps(mask.parts, frame) if not isinstance(step, Function)
    )
    last = len(frame) - 1
    query, key, value = (side.then(torch.flatten, 1, last) for side in (query, key, value))
    return Flat(query, key, value, 1, replace(mask, parts=parts))


def merged_steps(steps: tuple[Step, ...], frame: tuple[Any, ...]) -> tuple[Step, ...]:
    """Return steps on tensors that broadcast to four dimensions, where ``frame`` has over two."""
    if len(frame) < 3:
        return steps
    return tuple(with_tensors(step, lambda tensor: _merged_tensor(tensor, frame)) for step in steps)


def _merged_tensor(tensor: Expression, frame: tuple[Any, ...]) -> Expression:
    for _ in range(len(frame) + 2 - len(tensor.shape)):
        tensor = tensor.then(torch.unsqueeze, 0)
    if not is_same(tensor.shape[1:-2], (1,) * len(frame[1:])):
        tensor = tensor.shaped((tensor.shape[0], *frame[1:]), (tensor.shape[0], *frame[1:]))
    return tensor.then(torch.flatten, 1, len(frame) - 1)


def layout_is_read(versions: Versions, node: fx.Node) -> bool:
    """Return whether strides of a node's tensor may show: in a view, a result, a write in place."""
    for reader in node.users:
        call = versions.calls.get(reader)
        if call is None or call.in_place:
            return True
        if call.name in MOVING:
            if layout_is_read(versions, reader):
                return True
        elif call.name not in BLIND:
            return True
        elif call.name == "contiguous" and len(node.users) > 1 and _is_written(versions, reader):
            return True  # it shares memory with an input that is contiguous, and copies any other
    return False


def is_dense(node: fx.Node, order: tuple[int, ...]) -> bool:
    """Return whether a node's tensor is contiguous but for a permutation to ``order``.

    Whatever has one element along a dimension, as what `einsum` gives of one sequence, may have any
    stride there.
    """
    value = tensor_of(node)
    if value is None:
        return False
    back = sorted(range(value.ndim), key=order.__getitem__) if order else range(value.ndim)
    expected: int | torch.SymInt = 1
    for dim in reversed(list(back)):
        if is_same((value.shape[dim],), (1,)):
            continue
        if not is_same((value.stride(dim),), (expected,)):
            return False
        expected = expected * value.shape[dim]
    return True


def is_plain(value: torch.Tensor) -> bool:
    """Return whether a result is contiguous, as it is or rows before heads, as kernels write."""
    has_heads = 2 < value.ndim < 5  # those of five dimensions are merged for the kernel
    return value.is_contiguous() or (has_heads and value.transpose(-3, -2).is_contiguous())


def _is_written(versions: Versions, node: fx.Node) -> bool:
    calls = [versions.calls.get(reader) for reader in node.users]
    return any(call is None or call.in_place for call in calls)
