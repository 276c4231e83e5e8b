"""Where autocast is on in a Dynamo graph, and how to have what is put into one left as it is.

A graph begins as its caller has it: the one that is compiled as torch has it now, the body of a
higher-order op as its call has it. From there on nodes of the graph enter other states, and leave
them. What autocast makes of operands no node says, but the dtypes of results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.wrap import wrap_with_autocast
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast

from overlapc.graphs.bodies import bodies_in
from overlapc.graphs.values import value_of

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class State:
    """Of one type of device."""

    is_on: bool
    dtype: torch.dtype
    """What products are computed in where it is on."""


Autocast = Mapping[str, State]
"""By types of devices."""
OFF: Autocast = {name: State(False, torch.bfloat16) for name in DEVICES}


def ambient() -> Autocast:
    """Return what torch has now."""
    return {
        name: State(torch.is_autocast_enabled(name), torch.get_autocast_dtype(name))
        for name in DEVICES
    }


@contextmanager
def under(wanted: Autocast) -> Iterator[None]:
    """Let torch have another state meanwhile."""
    before = ambient()
    try:
        _set(wanted)
        yield
    finally:
        _set(before)


def _set(wanted: Autocast) -> None:
    for name, state in wanted.items():
        torch.set_autocast_enabled(name, state.is_on)
        torch.set_autocast_dtype(name, state.dtype)


def states(graph: fx.Graph) -> dict[fx.Node, Autocast]:
    """Return the state in which each node of a graph runs that begins in the ambient one."""
    now, before, found = ambient(), {}, {}
    for node in graph.nodes:
        found[node] = now
        if node.target is _enter_autocast:
            before[node] = now
            now = _entered(now, *node.args)
        elif node.target is _exit_autocast:
            now = before.get(node.args[0], now)
    return found


def _entered(
    now: Autocast, device: str, dtype: torch.dtype | None, is_on: bool, *_: object
) -> Autocast:
    own = now.get(device)
    return now if own is None else {**now, device: State(is_on, dtype or own.dtype)}


def states_of_bodies(graph: fx.Graph) -> dict[fx.Graph, Autocast]:
    """Return the state in which each body begins that a graph calls, at any depth."""
    found: dict[fx.Graph, Autocast] = {}
    own = states(graph)
    for name, body in bodies_in(graph):
        call = next(iter(name.users), name)
        found[body] = own[call]
        if call.target is wrap_with_autocast:
            given: tuple[Any, ...] = call.args
            found[body] = _entered(own[call], *given)
        with under(found[body]):
            found.update(states_of_bodies(body))
    return found


def dtype_of_products(state: Autocast, value: torch.Tensor) -> torch.dtype | None:
    """Return what products are computed in where such a tensor is; None where that is as its own
    dtype says."""
    own = state.get(value.device.type)
    return own.dtype if own is not None and own.is_on else None


@contextmanager
def left_alone(graph: fx.Graph, node: fx.Node) -> Iterator[None]:
    """Let what is put before ``node`` meanwhile run with autocast off, which would cast it.

    Here as well, where their values are found.
    """
    value = value_of(node)
    if isinstance(value, torch.Tensor) and dtype_of_products(states(graph)[node], value):
        with graph.inserting_before(node):
            off = (value.device.type, None, False, None)
            entered = graph.call_function(_enter_autocast, off)
        with graph.inserting_after(node):
            graph.call_function(_exit_autocast, (entered,))
    with under(OFF):
        yield
