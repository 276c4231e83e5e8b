"""What a graph tells of the numbers in a mask that it makes of its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import (
    CASTS,
    COPIES,
    EXPANSIONS,
    ORDERED,
)
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias, Fill
from overlapc.planning.attention.fills import WEAKEST_FILL

PASSED = (*ORDERED, *COPIES, *CASTS, *EXPANSIONS)
"""Calls that a mask passes as it is, or in part."""


def only_leaves_out(versions: Versions, part: Bias | Fill) -> bool:
    """Return whether a mask that is an input of some kind is of fills alone, as far as is told."""
    if isinstance(part, Fill):
        return part.value <= WEAKEST_FILL
    node = part.tensor.writer(versions)
    return part.factor > 0 and node is not None and _is_of_fills(versions, node)


def _is_of_fills(versions: Versions, node: fx.Node) -> bool:
    """Whether a tensor is zero where it does not take a score away."""
    call = versions.calls.get(node)
    if call is None:
        return False
    source = call.get("input")
    seen = versions.read(node, source) if isinstance(source, fx.Node) else None
    if call.name in ("where", "masked_fill", "setitem"):
        names = ("input", "other") if call.name == "where" else ("input", "value")
        sides = [number(versions, call.get(name)) for name in names]
        fills = [value is not None and value <= WEAKEST_FILL for value in sides]
        zeros = [value == 0 for value in sides]
        if call.name != "where" and seen is not None:
            zeros[0] = zeros[0] or _is_of_fills(versions, seen)
        return all(a or b for a, b in zip(fills, zeros, strict=True))
    if call.name in ("zeros_like", "new_zeros", "zeros"):
        return True
    is_kept = call.name in PASSED and not call.in_place
    return is_kept and seen is not None and _is_of_fills(versions, seen)


def least_of(versions: Versions, part: Bias | Fill) -> float:
    """Return the least number that it adds to scores; minus infinity where the graph tells none."""
    if isinstance(part, Fill):
        return part.value
    dtype = part.tensor.value.dtype
    if any(function is torch.clamp for function, _ in part.tensor.calls):  # a floor of scores
        return torch.finfo(dtype).min * part.factor
    node = part.tensor.writer(versions)
    chosen = None if node is None else _chosen(versions, node)
    held = -math.inf if chosen is None else float((chosen.to(dtype) * part.factor).min())
    return held if math.isfinite(held) else -math.inf


def _chosen(versions: Versions, node: fx.Node) -> torch.Tensor | None:
    """The two numbers that a tensor is a choice between, in its dtype."""
    call, own = versions.calls.get(node), tensor_of(node)
    if call is None or call.in_place or own is None:
        return None
    source = call.get("input")
    if call.name in PASSED and isinstance(source, fx.Node):
        seen = versions.read(node, source)
        numbers = None if seen is None else _chosen(versions, seen)
        return None if numbers is None else numbers.to(own.dtype)
    values = [number(versions, call.get(name)) for name in ("input", "other")]
    if call.name != "where" or None in values:
        return None
    return torch.tensor(values, dtype=own.dtype)


def is_sum_infinite(
    parts: Sequence[Bias | Fill], least: Sequence[float], dtype: torch.dtype
) -> bool:
    """Return whether finite masks may hide a key that together are minus infinity."""
    total = 0.0
    for part, value in zip(parts, least, strict=True):
        total = min(total, value) if isinstance(part, Fill) else total + value
    return total < torch.finfo(torch.promote_types(dtype, torch.float32)).min
