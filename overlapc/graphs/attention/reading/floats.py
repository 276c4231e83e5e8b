"""Numbers that Dynamo holds for inputs: under ``dynamic=True`` a module's scale is one.

Kernels are made for numbers, so a rewrite settles those that it took: Dynamo guards them, as it
does where a program gives one to torch's own attention, and another number is another graph.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx
from torch._dynamo import config as dynamo_config
from torch.utils._sympy.symbol import SymT, symbol_is_type

from overlapc.graphs.values import value_of

MOST_NUMBERS = 4
"""Of one input that are settled: it is taken for one that varies then. Chosen, half of what Dynamo
compiles of one frame before it gives up."""

_settled: dict[str, set[float]] = {}
"""By the name of an input."""


def likely(node: fx.Node) -> float | None:
    """Return what a number is in the call that is compiled for, without a guard.

    None where it is made of sizes; where floats become inputs only once they were seen to vary, for
    each of its numbers would be one more graph; and where it had ``MOST_NUMBERS`` before.
    """
    value = value_of(node)
    symbols = value.node.expr.free_symbols
    if symbols and dynamo_config.assume_static_by_default:
        return None
    if not all(symbol_is_type(symbol, SymT.FLOAT) for symbol in symbols):
        return None
    if value.node.hint is None:
        return None
    known = float(value.node.hint)
    others = _settled.get(_name(node), set()) - {known}
    return known if len(others) < MOST_NUMBERS else None


def settle(assumed: Iterable[fx.Node]) -> None:
    """Guard the numbers that a graph was read with."""
    for node in assumed:
        known = float(value_of(node))
        if isinstance(value_of(node), torch.SymFloat):
            _settled.setdefault(_name(node), set()).add(known)


def _name(node: fx.Node) -> str:
    """Of the inputs that a number is made of."""
    names, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        waiting.extend(one.all_input_nodes)
        names.update([str(one.target)] if one.op == "placeholder" else [])
    return " ".join(sorted(names))
