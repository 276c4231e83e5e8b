"""What a chain's program gives, from what its op is given: shapes and dtypes, nothing computed.

Tensors here are fake or on the meta device; sizes may be symbols, on which nothing is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.tiles import Tile
from overlapc.runtime.programs.execution import function
from overlapc.runtime.spec import ChainSpec

Shape = Sequence[Any]
"""Integers, or symbols of them."""


def moved(spec: ChainSpec, first: torch.Tensor, receives: Shape, ranks: int) -> torch.Tensor:
    """Return an empty tensor like what a consumer's collective gives for operand 0."""
    units, *rest = first.shape
    if spec.collective == "all_to_all":
        units = sum(receives) if len(receives) else units
        if spec.axis == 1:
            units //= ranks
    if spec.axis == 1:
        return first.new_empty((units, rest[0] * ranks, *rest[1:]))
    if spec.collective == "all_gather":
        units *= ranks
    return first.new_empty((units, *rest))


def arrived(spec: ChainSpec, sent: Shape, receives: Shape, ranks: int) -> tuple[Any, ...]:
    """Return the shape that a producer's collective gives for ``sent`` on every rank."""
    units, *rest = sent
    if spec.collective == "all_reduce":
        return tuple(sent)
    if spec.axis == 1:
        rest[0] //= ranks
        return (units if spec.collective == "reduce_scatter" else units * ranks, *rest)
    if spec.collective == "reduce_scatter":
        return (units // ranks, *rest)
    return (sum(receives) if len(receives) else units, *rest)


def values(
    spec: ChainSpec, operands: Sequence[torch.Tensor], receives: Shape, ranks: int
) -> tuple[torch.Tensor, ...]:
    """Return the program's results for tensors without content: what is sent, and what is kept."""
    if spec.is_consumer:
        operands = [moved(spec, operands[0], receives, ranks), *operands[1:]]
    return function(spec.program)(operands, ())


def results(
    spec: ChainSpec, operands: Sequence[torch.Tensor], receives: Shape, ranks: int
) -> list[torch.Tensor]:
    """Return empty tensors like those that the op returns."""
    found = values(spec, operands, receives, ranks)
    shapes: list[Shape] = [value.shape for value in found]
    if not spec.is_consumer:
        shapes[0] = arrived(spec, shapes[0], receives, ranks)
    if spec.packed:
        shapes[0] = (packed_order(shapes[0], spec.packed).elements,)
    dtypes = [value.dtype for value in found]
    return [
        operands[0].new_empty(shape, dtype=dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def packed_order(shape: Shape, tile: Tile) -> PackedOrder:
    """Return where the elements of a packed chain's C lie, which has this shape."""
    m, n = shape
    return PackedOrder(m, n, tile)


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same layout without content."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
