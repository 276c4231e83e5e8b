"""Zeros for all linear layers of a graph, in which CTAs that share a k are counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.chains.walking import ordered
from overlapc.graphs.values import value_of
from overlapc.planning.linear.tiles import most_counters


def give_counters(graph: fx.Graph, ops: Sequence[fx.Node]) -> None:
    """Give each op of linear layers on a device zeros of its own, of one tensor a graph.

    A kernel leaves them zero, so that nothing is mutated. Made in the graph they are of the call
    alone, whatever stream it is replayed on, and one fill a graph in place of one a layer. (Zeros
    that Inductor knows of it would fill anew for every op.)
    """
    on: dict[torch.device, list[fx.Node]] = {}
    for op in ordered(set(ops), graph):
        device = _results(op)[0].device
        if device.type != "cpu":
            on.setdefault(device, []).append(op)
    for device, its in on.items():
        counts = [most_counters([int(one.shape[1]) for one in _results(op)]) for op in its]
        target = torch.ops.overlapc.linear_counters.default
        with graph.inserting_before(its[0]):
            zeros = add_call(graph, target, (sum(counts), device), like=its[0])
        for index, op in enumerate(its):
            op.args = (*op.args, zeros, sum(counts[:index]))


def _results(op: fx.Node) -> Sequence[torch.Tensor]:
    found = value_of(op)
    return found if isinstance(found, list | tuple) else [found]
