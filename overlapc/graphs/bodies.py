"""Bodies of higher-order ops, such as activation checkpoints, as parts of the graph that calls
them: what their inputs are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._higher_order_ops.wrap import tag_activation_checkpoint

Given = Mapping[fx.Node, Any]
"""By the placeholders of a graph, what they are given."""


@dataclass(frozen=True)
class Body:
    """A body of a higher-order op, and its one call: of several, or where what follows the body is
    not its inputs, nothing is known. Nor of a call of several bodies: as many operands as inputs
    prove nothing there, as of the backward of an ``autograd.Function``, which reads gradients."""

    graph: fx.Graph
    call: fx.Node | None
    operands: Mapping[fx.Node, fx.Node]
    """By the placeholders of the body, what the call gives them, as far as that are nodes."""


def graphs_with_inputs(graph: fx.Graph, inputs: Sequence[Any]) -> Iterator[tuple[fx.Graph, Given]]:
    """Yield the bodies that a graph calls, at any depth, each after those that it calls, and last
    the graph itself, with what each is given of ``inputs``: as far as an operand of a body is an
    input of the graph that calls it."""
    given = dict(zip(placeholders(graph), inputs, strict=False))
    yield from _bodies(graph, given)
    yield graph, given


def parameters_in(given: Given) -> dict[fx.Node, torch.Tensor]:
    """Return the parameters among what a graph is given."""
    return {node: value for node, value in given.items() if isinstance(value, nn.Parameter)}


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """Return the inputs of a graph in their order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def _bodies(graph: fx.Graph, given: Given) -> Iterator[tuple[fx.Graph, Given]]:
    for body in bodies_called(graph):
        own = {inner: given[outer] for inner, outer in body.operands.items() if outer in given}
        yield from _bodies(body.graph, own)
        yield body.graph, own


def bodies_called(graph: fx.Graph) -> Iterator[Body]:
    """Yield the bodies that the graph itself calls."""
    body_of = dict(bodies_in(graph))
    names: dict[fx.Graph, list[fx.Node]] = {}
    for name, body in body_of.items():
        names.setdefault(body, []).append(name)
    for body, its in names.items():
        calls = [(name, user) for name in its for user in name.users]
        own = placeholders(body)
        name, call = calls[0] if len(calls) == 1 else (None, None)
        given = call.args[call.args.index(name) + 1 :] if call and name in call.args else ()
        is_alone = call is not None and sum(one in body_of for one in call.all_input_nodes) == 1
        if call is None or not is_alone or name not in call.args or len(given) != len(own):
            yield Body(body, None, {})
            continue
        pairs = zip(own, given, strict=True)
        yield Body(
            body, call, {inner: outer for inner, outer in pairs if isinstance(outer, fx.Node)}
        )


def checkpointed(graph: fx.Graph) -> set[fx.Graph]:
    """Return the bodies of activation checkpoints that a graph calls, and all that these call."""
    found: set[fx.Graph] = set()
    for name, body in bodies_in(graph):
        is_own = any(user.target is tag_activation_checkpoint for user in name.users)
        found.update((body, *subgraphs(body)) if is_own else checkpointed(body))
    return found


def nodes_in_order(graph: fx.Graph, seen: set[fx.Graph] | None = None) -> Iterator[fx.Node]:
    """Yield the nodes of a graph, those of each body before the first call of it."""
    seen = {graph} if seen is None else seen
    bodies = dict(bodies_in(graph))
    for node in graph.nodes:
        body = bodies.get(node)
        if body is not None and body not in seen:
            seen.add(body)
            yield from nodes_in_order(body, seen)
        yield node


def bodies_in(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Graph]]:
    """Yield the bodies of higher-order ops that the graph itself calls, each with its name."""
    owner = graph.owning_module
    for node in graph.nodes:
        if node.op != "get_attr" or owner is None:
            continue
        body = getattr(owner, str(node.target), None)
        if isinstance(body, fx.GraphModule):
            yield node, body.graph


def subgraphs(graph: fx.Graph) -> Iterator[fx.Graph]:
    """Yield the bodies of higher-order ops that the graph calls, at any depth."""
    for _, body in bodies_in(graph):
        yield body
        yield from subgraphs(body)
