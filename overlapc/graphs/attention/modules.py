"""``nn.MultiheadAttention``, which is one call in a graph, as the calls that it makes.

Torch's own function is run on the fake tensors of the graph, and what it calls is written down.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from types import FunctionType
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from overlapc.graphs.attention.reading.idle import erase_idle, is_idle
from overlapc.graphs.attention.reading.naming import weights_read
from overlapc.graphs.attention.reading.spelling import read_call, tensor_of
from overlapc.graphs.attention.reading.varying import VARYING, is_varying, numbers_given
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.autocast import states, under
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.faults import fault_at
from overlapc.graphs.values import BEFORE_AUTOGRAD, VALUE_KEYS, fake_mode, value_of

MODULE = "multi_head_attention_forward"
CLOSED = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
"""Kernels of torch's that hold an attention and its linear layers, or all of a layer."""


@dataclass(frozen=True)
class SpelledOut:
    """A module whose call nobody reads any more, and the calls before it that stand for it."""

    call: fx.Node
    value: fx.Node
    """What reads the first result of the call."""
    nodes: tuple[fx.Node, ...]
    result: fx.Node

    def restore(self, graph: fx.Graph) -> None:
        """Make the graph what it was."""
        self.result.replace_all_uses_with(self.value)
        for node in reversed(self.nodes):
            graph.erase_node(node)

    def keep(self, graph: fx.Graph) -> None:
        """Take the call away."""
        for user in list(self.call.users):
            erase_idle(graph, user)
            graph.erase_node(user)
        graph.erase_node(self.call)


def find_modules(graph: fx.Graph) -> list[fx.Node]:
    """Return the calls that modules are."""
    calls = (read_call(node) for node in graph.nodes)
    return [call.node for call in calls if call is not None and call.name == MODULE]


def spell_out(graph: fx.Graph, node: fx.Node) -> SpelledOut | Refusal:
    """Put the calls that a module makes in its place; it stays, and nobody reads it."""
    parts = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    if len(parts) != len(node.users) or 0 not in parts:
        return Refusal(node, "multi_head_module", "Its result is not read as a pair.")
    weights = parts.get(1)
    if weights is not None and not all(map(is_idle, weights.users)):
        readers = [user for user in weights.users if not is_idle(user)]
        return weights_read(Versions(graph), node, readers)
    recorder = _Recorder(graph, node)
    wanted = tensor_of(parts[0])
    try:
        args, kwargs = fx.map_arg((node.args, node.kwargs), recorder.known)
        state = under(states(graph)[node])
        with (
            graph.inserting_before(node),
            fake_mode(parts[0]),
            state,
            enable_python_dispatcher(),
            recorder,
        ):
            found, _ = _forward(*args, **kwargs)
        why = "" if wanted is not None and _is_alike(found, wanted) else "it gave something else"
    except (CannotSpell, RuntimeError, TypeError, ValueError, AssertionError) as error:
        found, why = None, f"{error}"
    except Exception as error:
        recorder.undo()
        return fault_at(node, error)
    if why or found is None:
        recorder.undo()
        reason = f"nn.MultiheadAttention is one call here, which could not be spelled out: {why}."
        return Refusal(node, "multi_head_module", reason)
    result = recorder.node_of(found)
    nodes = recorder.needed(result)
    parts[0].replace_all_uses_with(result)
    return SpelledOut(node, parts[0], nodes, result)


class CannotSpell(Exception):
    """Its text says why, without a full stop."""


def _is_alike(found: object, wanted: torch.Tensor) -> bool:
    if not isinstance(found, torch.Tensor):
        return False
    facts = [(tuple(t.shape), t.stride(), t.dtype) for t in (found, wanted)]
    return facts[0] == facts[1]


# The function asks first whether somebody else is to run it, and would be told of the recorder.
_forward = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


class _Recorder(TorchFunctionMode):
    """Puts what runs under it into a graph, before a node and with its origin."""

    def __init__(self, graph: fx.Graph, before: fx.Node) -> None:
        super().__init__()
        self.graph = graph
        self.before = before
        self.nodes: list[fx.Node] = []
        self._node_of: dict[int, fx.Node] = {}
        self._numbers: dict[sympy.Basic, fx.Node | int] = {**numbers_given(graph)}
        self._alive: list[object] = []

    def known(self, node: fx.Node) -> Any:
        """The value of a node of the graph; the node is remembered by it."""
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            self._node_of[id(value)] = node
        elif is_varying(node):
            self._numbers[value.node.expr] = node
        else:
            raise CannotSpell("what it is given is neither a tensor nor a number")
        return value

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node that gives a tensor."""
        if id(tensor) not in self._node_of:
            raise CannotSpell("a tensor comes from nowhere")
        return self._node_of[id(tensor)]

    def needed(self, result: fx.Node) -> tuple[fx.Node, ...]:
        """Erase what is not read on the way to ``result``; return the rest."""
        for node in reversed(self.nodes):
            if node is not result and not node.users:
                self.graph.erase_node(node)
                self.nodes.remove(node)
        return tuple(self.nodes)

    def undo(self) -> None:
        """Erase all."""
        for node in reversed(self.nodes):
            self.graph.erase_node(node)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        value = func(*args, **kwargs)
        if isinstance(value, torch.Tensor):
            self._put(func, args, kwargs, value)
        elif isinstance(value, tuple | list) and any(isinstance(v, torch.Tensor) for v in value):
            whole = self._put(func, args, kwargs, value)
            for index, part in enumerate(value):
                self._add("call_function", operator.getitem, (whole, index), {}, part)
        return value

    def _put(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        name = getattr(func, "__name__", "")
        placed, named = tree_map(self._place, (args, kwargs))
        if getattr(torch.Tensor, name, None) is not func:
            return self._add("call_function", func, placed, named, value)
        if not name.startswith("__"):
            return self._add("call_method", name, placed, named, value)
        target = getattr(operator, name.strip("_"), None)
        if target is None:
            raise CannotSpell(f"it calls {name}")
        return self._add("call_function", target, placed, named, value)

    def _place(self, argument: Any) -> Any:
        if isinstance(argument, VARYING):
            return self._number_of(argument.node.expr)
        return self.node_of(argument) if isinstance(argument, torch.Tensor) else argument

    def _number_of(self, expr: sympy.Basic) -> fx.Node | int:
        """What gives a size or number: a node that does, or sums and products of such."""
        if isinstance(expr, sympy.Integer):
            return int(expr)
        function = {sympy.Add: operator.add, sympy.Mul: operator.mul}.get(expr.func)
        if expr not in self._numbers and function is not None:
            self._numbers[expr] = reduce(
                partial(self._computed, function), map(self._number_of, expr.args)
            )
        if expr not in self._numbers:
            raise CannotSpell("a size varies, and no input of the graph is or makes it")
        return self._numbers[expr]

    def _computed(self, function: Any, *sides: fx.Node | int) -> fx.Node:
        value = function(*(value_of(one) if isinstance(one, fx.Node) else one for one in sides))
        return self._add("call_function", function, sides, {}, value)

    def _add(
        self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
    ) -> fx.Node:
        node = self.graph.create_node(op, target, tuple(args), kwargs)
        meta = self.before.meta.items()
        node.meta = {key: item for key, item in meta if key not in VALUE_KEYS}
        node.meta[BEFORE_AUTOGRAD] = value
        self.nodes.append(node)
        self._node_of[id(value)] = node
        self._alive.append(value)
        return node
