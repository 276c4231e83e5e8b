"""Keeps our ops in their place among the other collectives of a graph.

Inductor keeps the order of the collectives that it knows, and ours are not among them: it would
move one past another by the sizes of unrelated tensors. Ranks whose graphs differ a little would
then send in different orders. Contract: same nodes, same values; where neither an edge nor
Inductor says that one collective follows another, a control dependency does.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx
from torch._inductor.fx_passes.control_dependencies import preserve_node_ordering
from torch.utils._ordered_set import OrderedSet

from overlapc.graphs.collectives import collective_starts, is_ours
from overlapc.graphs.edges import is_ancestor
from overlapc.graphs.values import value_of
from overlapc.passes.base import Compilation


@dataclass(frozen=True)
class OrderCollectives:
    """Chains each of our ops to the collective before it and the one after it."""

    name: str = "order_collectives"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Add the control dependencies that are missing."""
        if compilation.is_disabled(self.name):
            return
        missing = {
            after: OrderedSet([_result(before)])
            for before, after in pairwise(collective_starts(graph))
            if (is_ours(before) or is_ours(after)) and not is_ancestor(before, after)
        }
        preserve_node_ordering(graph, missing)


def _result(start: fx.Node) -> fx.Node:
    """A tensor that ``start`` gives, right behind it: torch 2.11 follows no list of tensors."""
    if isinstance(value_of(start), torch.Tensor):
        return start
    first = next((user for user in start.users if user.target is operator.getitem), start)
    if first is not start:
        start.append(first)
    return first
