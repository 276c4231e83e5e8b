"""Sizes of the tensors of a graph, which may vary: compared without a guard, and as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.refusals import refuse
from overlapc.graphs.values import value_of

aten = torch.ops.aten

FEWER = (
    "Remedy: let only rows vary: torch._dynamo.mark_dynamic for their dimensions in place of "
    "dynamic=True, or torch._dynamo.mark_static for the others."
)


@dataclass(frozen=True)
class Size:
    """``factor`` times a size of a tensor that outlives the rewrite."""

    node: fx.Node
    dim: int
    factor: int = 1


@dataclass(frozen=True)
class Sum:
    """The sum of sizes."""

    parts: tuple[int | fx.Node, ...]


Dim = int | fx.Node | Size | Sum
"""A size as an argument of a node to be made."""


def shape_of(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    """Return the sizes of a node's tensor."""
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        refuse(node, "no_sizes", f"Tracing left no sizes at {node.target}.")
    return tuple(value.shape)


def lead_of(
    shape: Sequence[Any], rows: int | torch.SymInt, rest: Sequence[Any] | None = None
) -> int | None:
    """Return how many leading dimensions hold the rows; None if no whole number does.

    Where a dimension of size one may be either, those with ``rest`` behind them, or else the first.
    """
    leads = [
        lead
        for lead in range(1, len(shape) + 1)
        if statically_known_true(prod(shape[:lead]) == rows)
    ]
    with_rest = [lead for lead in leads if rest is not None and same(shape[lead:], rest)]
    return (with_rest or leads or [None])[0]


def same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Return whether two shapes are known to be equal, without a guard."""
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(statically_known_true(a == b) for a, b in pairs)


def is_static(shape: Sequence[Any]) -> bool:
    """Return whether every size is a number."""
    return all(isinstance(size, int) for size in shape)


def sizes_of(node: fx.Node, first: int) -> tuple[Dim, ...]:
    """Return the sizes of a tensor from a dimension on as arguments."""
    sizes = enumerate(shape_of(node)[first:], first)
    return tuple(size if isinstance(size, int) else Size(node, index) for index, size in sizes)


def size_of(dim: Dim) -> int | torch.SymInt:
    """Return what an argument says."""
    if isinstance(dim, Size):
        return dim.factor * shape_of(dim.node)[dim.dim]
    if isinstance(dim, Sum):
        return sum(size_of(part) for part in dim.parts)
    return value_of(dim) if isinstance(dim, fx.Node) else dim


def fixed(node: fx.Node, shape: Sequence[Any]) -> tuple[int, ...]:
    """Return sizes that a program can hold: numbers."""
    if not is_static(shape):
        reason = f"It regroups columns whose number varies. {FEWER}"
        refuse(node, "dynamic_columns", reason)
    return tuple(shape)


def dims_of(node: fx.Node, shape: Sequence[Any]) -> tuple[Dim, ...] | None:
    """Return sizes as arguments: numbers, or the nodes that a reshape was given."""
    if is_static(shape):
        return tuple(shape)
    if node.target in (aten.reshape.default, aten.view.default, aten._unsafe_view.default):
        given = node.args[1]
        assert isinstance(given, list | tuple)
        if all(isinstance(size, fx.Node) or size != -1 for size in given):
            return tuple(given)  # pyright: ignore[reportReturnType]
    return None
