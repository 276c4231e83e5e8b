"""Lets a module see what the scores of an attention are made of, beside a graph's own work."""

from __future__ import annotations

from torch import nn

from overlapc.graphs.attention.placing import Lengths, operands_of
from overlapc.graphs.attention.site import Attention


def watch(found: Attention, module: nn.Module, name: str, known: Lengths) -> None:
    """Call a module under a name with what ``overlapc.attention`` takes, up to its sinks.

    For a graph that is run as it stands: the call has no value, and nothing reads it.
    """
    graph = found.node.graph
    assert graph.owning_module is not None
    graph.owning_module.add_submodule(name, module)
    operands = operands_of(graph, found, known)
    with graph.inserting_before(found.node):
        graph.call_module(name, operands)
    graph.owning_module.recompile()
