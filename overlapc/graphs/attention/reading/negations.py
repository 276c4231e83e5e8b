"""Conditions in their negations and casts."""

from __future__ import annotations

import torch
from torch import fx

from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import CASTS
from overlapc.graphs.attention.reading.versions import Versions

NEGATIONS = ("invert", "logical_not", "bitwise_not")


def without_negation(
    versions: Versions, reader: fx.Node, source: fx.Node, is_kept: bool
) -> tuple[fx.Node | None, bool]:
    """Return what wrote a condition, without negations and casts, and what it says then.

    None: it was written through another view.
    """
    node = versions.read(reader, source)
    while node is not None and (call := versions.calls.get(node)) is not None:
        is_negated = call.name in NEGATIONS and not call.in_place
        if not is_negated and (call.in_place or call.name not in CASTS):
            known = number(versions, call.get("other")) if call.name == "eq" else None
            own = tensor_of(call.get("input"))
            if known != 0 or call.in_place or own is None or own.dtype != torch.bool:
                break
            is_negated = True  # of booleans equal to zero
        value = tensor_of(call.get("input"))
        if value is None or value.dtype != torch.bool:
            break
        is_kept ^= is_negated
        node = versions.read(node, call.get("input"))
    return node, is_kept
