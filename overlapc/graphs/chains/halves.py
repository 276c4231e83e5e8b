"""An all-reduce as a reduce-scatter and an all-gather of its rows, in a graph, and back."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.collectives import Collective, Refusal, functional, read_collective
from overlapc.graphs.sizes import shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Halves:
    """Both halves of an all-reduce, which is still in the graph and read by nobody."""

    whole: Collective
    scatter: Collective
    gather: Collective
    result: fx.Node
    """The gathered rows, which took the place of the all-reduce's result."""
    added: tuple[fx.Node, ...]
    """In program order."""


def split(whole: Collective, ranks: int) -> Halves | Refusal:
    """Let the readers of an all-reduce read its two halves, or say why it has none."""
    shape = shape_of(whole.wait)
    rows = prod(shape[:-1])
    if not all(isinstance(size, int) for size in shape):
        return Refusal(whole.start, "varying_rows", "The number of its rows varies.")
    if len(shape) < 2 or rows % ranks or not rows:
        reason = f"Its {rows} rows are not dealt out evenly to {ranks} ranks."
        return Refusal(whole.start, "uneven_rows", reason)
    graph, like, added = whole.start.graph, whole.start, []

    def add(target: Any, *args: Any) -> fx.Node:
        added.append(add_call(graph, target, args, like=like))
        return added[-1]

    wait = functional.wait_tensor.default
    with graph.inserting_before(whole.start):
        flat = [rows, shape[-1]]
        source = whole.source if len(shape) == 2 else add(aten.reshape.default, whole.source, flat)
        scatter = add(
            functional.reduce_scatter_tensor.default, source, whole.reduce, ranks, whole.group
        )
        part = add(wait, scatter)
        gather = add(functional.all_gather_into_tensor.default, part, ranks, whole.group)
    with graph.inserting_before(whole.wait):
        result = add(wait, gather)
        result = result if len(shape) == 2 else add(aten.reshape.default, result, list(shape))
    whole.wait.replace_all_uses_with(result)
    first, second = read_collective(scatter), read_collective(gather)
    assert isinstance(first, Collective)
    assert isinstance(second, Collective)
    return Halves(whole, first, second, result, tuple(added))


def join(halves: Halves) -> None:
    """Take the halves out again: the graph is as it was."""
    halves.result.replace_all_uses_with(halves.whole.wait)
    for node in reversed(halves.added):
        node.graph.erase_node(node)


def drop_whole(halves: Halves) -> None:
    """Take out the all-reduce."""
    for node in (halves.whole.wait, halves.whole.start):
        node.graph.erase_node(node)
