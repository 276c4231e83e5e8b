"""Tensors that a graph makes of numbers, or of its weights: computed while compiling."""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from overlapc.graphs.attention.reading.floats import likely
from overlapc.graphs.attention.reading.remembering import recalled
from overlapc.graphs.attention.reading.shapes import reads_shape, standing_in
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.versions import Versions, writes_to
from overlapc.graphs.edges import is_random
from overlapc.graphs.values import value_of

MOST_NODES = 400
"""Nodes above a constant: chosen, several times what transformers makes a mask of."""
MOST_ELEMENTS = 1 << 26
"""Of any tensor on the way: chosen, a mask of 8192 by 8192."""
UNMADE = ("empty", "new_empty", "rand", "normal", "multinomial", "bernoulli", "uniform",
          "exponential", "geometric", "cauchy", "log_normal", "rrelu")  # fmt: skip
"""How calls begin that give other numbers each time."""
FILLING = ("fill", "zero")
"""Calls in place whatever was there before."""


def constant(versions: Versions, node: fx.Node) -> torch.Tensor | None:
    """Return the value of a node that depends on no input, on the processor; None if it does.

    Of one that writes in place it is what is there then: later writes are for ``Versions`` to tell.
    What the body of a higher-order op is given of constants of the graph that calls it is constant.
    """
    order = calls_above(versions, node)
    if order is None:
        return None

    def compute() -> torch.Tensor | None:
        given = {one: constant(*versions.outer[one]) for one in order if one.op == "placeholder"}
        is_known = all(value is not None for value in given.values())
        return computed(order, given) if is_known else None

    return recalled(_spelling(versions, order), compute)


def spelling_of(versions: Versions, node: fx.Node) -> Hashable | None:
    """Return what is equal for constants that the same calls make; None of what is no constant."""
    order = calls_above(versions, node)
    return None if order is None else _spelling(versions, order)


def _spelling(versions: Versions, order: tuple[fx.Node, ...]) -> Hashable:
    places = {node: f"%{place}" for place, node in enumerate(order)}

    def name(node: fx.Node) -> str:
        value = tensor_of(node)  # others are read for their shape alone
        return places.get(node) or f"{None if value is None else (value.shape, value.dtype)}"

    return tuple(
        spelling_of(*versions.outer[node])
        if node.op == "placeholder"
        else (node.op, node.target, repr(fx.map_arg((node.args, node.kwargs), name)), _dtype(node))
        for node in order
    )


def computed(order: tuple[fx.Node, ...], given: Mapping[fx.Node, Any]) -> torch.Tensor | None:
    """Return what the last of some calls gives, of inputs that are ``given``, on the processor."""
    values: dict[fx.Node, Any] = {}
    try:
        with _disable_current_modes(), torch.no_grad(), torch.device("cpu"):
            for one in order:
                is_input = one.op == "placeholder"
                values[one] = given[one].detach().cpu() if is_input else _run(one, values)
                if getattr(values[one], "dtype", None) != _dtype(one):
                    return None  # by autocast, which is as the graph begins here
    except (RuntimeError, TypeError, ValueError, LookupError):
        return None  # what cannot be computed here is a mask like any other
    last = order[-1]
    written = last.args[0] if last.target is operator.setitem else None  # which gives no tensor
    value = values[written if isinstance(written, fx.Node) else last]
    return value if isinstance(value, torch.Tensor) else None


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = tensor_of(node)
    return None if value is None else value.dtype


def number(versions: Versions, argument: object) -> float | None:
    """Return the number that an argument of a call is, or the constant tensor of one element.

    Of a float that is an input, what is ``likely``.
    """
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return float(argument)
    known = value_of(argument) if isinstance(argument, fx.Node) else None
    if isinstance(argument, fx.Node) and isinstance(known, torch.SymFloat):
        found = likely(argument)
        if found is not None:
            versions.assumed.add(argument)
        return found
    value = tensor_of(argument)
    if not isinstance(argument, fx.Node) or value is None or value.ndim > 0:
        return None
    if versions.is_written(argument):
        return None  # who asks does not say when it is read
    found = constant(versions, argument)
    return None if found is None or found.dtype.is_complex else float(found.item())


def calls_above(
    versions: Versions, node: fx.Node, *, of_inputs: bool = False
) -> tuple[fx.Node, ...] | None:
    """Return the calls that give a node's value, in the order of the graph; None if one is no
    constant. Inputs of the graph may be among them with ``of_inputs``.

    Calls that write in place are, where all of the tensor is read as they left it: computed in
    order, they write to memory that calls before them made, and none to that of an input."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        is_given = one.op == "placeholder" and (of_inputs or _is_given(versions, one))
        if len(found) > MOST_NODES or not (is_given or _is_computable(versions, one)):
            return None
        call = versions.calls.get(one)
        sources = [source for source in one.all_input_nodes if not reads_shape(call, source)]
        for source in sources:
            writer = versions.read(one, source)
            if writer is None:
                return None  # written through another view, which is not among the calls
            waiting.extend((source, writer))
    order = tuple(sorted(found, key=versions.index.__getitem__))
    is_of_inputs = any(one.op == "placeholder" for one in order)
    return None if is_of_inputs and any(_writes(versions, one) for one in order) else order


def _writes(versions: Versions, node: fx.Node) -> bool:
    call = versions.calls.get(node)
    return call is not None and (call.in_place or bool(writes_to(node, call)))


def _is_given(versions: Versions, node: fx.Node) -> bool:
    """Whether the input of a body is a constant of the graph that calls it."""
    outer = versions.outer.get(node)
    return outer is not None and calls_above(*outer) is not None


def _is_computable(versions: Versions, node: fx.Node) -> bool:
    call = versions.calls.get(node)
    if call is None or is_random(node):
        return False
    if call.name.startswith(UNMADE) and not _is_overwritten(versions, node):
        return False
    value = tensor_of(node)
    if value is None:
        return True
    sizes = tuple(value.shape)
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes) <= MOST_ELEMENTS


def _is_overwritten(versions: Versions, node: fx.Node) -> bool:
    """Whether memory that nobody has set is set before it is read."""
    readers = [versions.calls.get(one) for one in versions.readers[node]]
    is_empty = not node.all_input_nodes and not _writes(versions, node)
    return is_empty and all(
        one is not None and one.in_place and one.name in FILLING for one in readers
    )


def _run(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg(
        (node.args, node.kwargs), lambda one: values[one] if one in values else standing_in(one)
    )
    args, kwargs = tree_map(_on_processor, (args, kwargs))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _on_processor(argument: Any) -> Any:
    is_place = isinstance(argument, torch.device) or argument in ("cuda", "meta")
    return torch.device("cpu") if is_place else argument
