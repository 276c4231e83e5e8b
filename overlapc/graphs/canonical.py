"""The canonical text of a graph: equal if and only if two graphs are alike."""

from __future__ import annotations

import hashlib

import torch
from torch import fx
from torch._library.fake_class_registry import FakeScriptObject

from overlapc.graphs.values import value_of


def text(graph: fx.Graph) -> str:
    """Return the graph in one line a node, with values numbered in order: equal iff alike.

    Names that Dynamo or AOTAutograd chose do not occur, so the text is stable from run to run.
    """
    numbers = {node: f"%{index}" for index, node in enumerate(graph.nodes)}
    return "\n".join(_line(node, numbers) for node in graph.nodes) + "\n"


def fingerprint(graph: fx.Graph) -> str:
    """Return a short hash of the canonical text."""
    return hashlib.sha256(text(graph).encode()).hexdigest()[:12]


def _line(node: fx.Node, numbers: dict[fx.Node, str]) -> str:
    if node.op == "placeholder":
        call = "input"
    else:
        shown = [_show(argument, numbers) for argument in node.args]
        shown += [f"{key}={_show(value, numbers)}" for key, value in node.kwargs.items()]
        call = f"{_target(node)}({', '.join(shown)})"
    return f"{numbers[node]} = {call}{_annotation(value_of(node))}"


def _target(node: fx.Node) -> str:
    if node.op in ("output", "get_attr"):
        return node.op if node.op == "output" else f"get_attr[{node.target}]"
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _show(argument: object, numbers: dict[fx.Node, str]) -> str:
    if isinstance(argument, fx.Node):
        return numbers[argument]
    if isinstance(argument, list | tuple):
        return "[" + ", ".join(_show(item, numbers) for item in argument) + "]"
    return repr(argument)


def _annotation(value: object) -> str:
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"  # {str(value.dtype).removeprefix('torch.')}[{sizes}] {value.device.type}"
    if value is None or isinstance(value, FakeScriptObject | tuple | list):
        return ""
    return f"  # {value}"
