"""Which generated kernel computes a chain, or why none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from overlapc.codegen import GemmSpec
from overlapc.codegen.epilogue import Call, Dtype, Input
from overlapc.codegen.epilogue import Ref as Place
from overlapc.codegen.lowering import Lowered, gemm_operands, lower
from overlapc.codegen.promotion import CannotLower
from overlapc.codegen.tiles import spec_for
from overlapc.errors import KernelError
from overlapc.planning.target import Target
from overlapc.planning.tiles import Tile
from overlapc.runtime.programs.program import ROWS, Program, Ref
from overlapc.runtime.spec import ChainSpec

Facts = tuple[tuple[str, int, tuple[int, ...]], ...]
"""Of each operand: its dtype, its dimensions, and its sizes beside the rows."""


def kernel_spec_of(
    spec: ChainSpec, target: Target, operands: Sequence[torch.Tensor], tile: Tile | None = None
) -> tuple[GemmSpec, Lowered]:
    """Return the kernel that a signaled plan of a chain runs with its tile, and what of the chain
    it is.

    Fake operands do. ``KernelError`` if none does, for one that leaves a part of the chain to the
    library would send what is not ready.
    """
    lowered = lowered_chain(spec, operands)
    if not target.architecture:
        raise KernelError(
            f"Target {target.name} does not say for which architecture to generate a kernel.",
            where="the signaled schedule",
            remedy="give a target with field architecture, such as sm_90",
        )
    a, b = operands[lowered.a], operands[lowered.b]
    tile = tile or spec.packed
    found = spec_for(a, b, architecture=target.architecture, lowered=lowered, tile=tile)
    if spec.packed:
        # All ranks send the tiles that were planned, and the graph reads no others.
        if not _lie_alike(found.tile, spec.packed):  # the sweep is that of the launch
            raise _error(f"The operands leave too few registers to tiles of {spec.packed}.")
        found = replace(found, order="packed")
    return found, lowered


def _lie_alike(one: Tile, other: Tile) -> bool:
    return (one.block_m, one.block_n) == (other.block_m, other.block_n)


def lowered_chain(spec: ChainSpec, operands: Sequence[torch.Tensor]) -> Lowered:
    """Return the whole of a chain's program as one kernel's; ``KernelError`` where it is not."""
    if spec.is_consumer:
        raise _error("The GEMM comes after the collective, so it has nothing to signal.")
    if spec.program.kept:
        raise _error("No kernel stores a value beside what is sent.")
    return lowered_program(spec.program, operands)


def lowered_program(
    program: Program, operands: Sequence[torch.Tensor], most_products: int = 1
) -> Lowered:
    """Return a whole program as one kernel's; ``KernelError`` where it is not. Fakes do."""
    facts = tuple(
        (str(t.dtype).removeprefix("torch."), t.dim(), tuple(t.shape)[mode == ROWS :])
        for mode, t in zip(program.modes, operands, strict=True)
    )
    # Tensors of no dimension may live on the host, where no kernel reads them.
    on_host = tuple(t.device.type != operands[0].device.type for t in operands)
    lowered = _lower(program, facts, on_host, most_products)
    if isinstance(lowered, str):
        raise _error(lowered)
    return lowered


@lru_cache(maxsize=256)
def _lower(
    program: Program, facts: Facts, on_host: tuple[bool, ...], most_products: int
) -> Lowered | str:
    """The chain as one kernel's, or the reason why it is none."""
    calls = [
        Call(step.op, _converted(step.args), _converted(step.kwargs)) for step in program.steps
    ]
    try:
        a, b = gemm_operands(calls[0])
        dtype, n = facts[a][0], facts[b][2][-1]
        inputs = [
            None if hidden else _input(mode, *fact, n)
            for mode, fact, hidden in zip(program.modes, facts, on_host, strict=True)
        ]
        results = [_converted(ref) for ref in program.results]
        lowered = lower(calls, inputs, results, dtype=dtype, columns=n, most_products=most_products)
    except CannotLower as error:
        return str(error)
    return lowered.reason or lowered


def _input(mode: str, dtype: str, dims: int, sizes: tuple[int, ...], n: int) -> Input | None:
    """An operand as an epilogue reads it beside C[m, n]; None where it cannot."""
    match mode, dims, sizes:
        case "rows", 2, (size,) if size in (1, n):
            return Input("matrix" if size == n else "column", dtype)
        case "whole", 0, ():
            return Input("scalar", dtype)
        case "whole", 1 | 2, (1,) | (1, 1):
            return Input("one", dtype)
        case "whole", 1 | 2, (size,) | (1, size) if size == n:
            return Input("vector", dtype)
    return None


def _converted(value: Any) -> Any:
    """An argument of a program's step as one of a call of codegen, which stands below."""
    if isinstance(value, Ref):
        return Place("input" if value.is_operand else "value", value.index)
    if isinstance(value, torch.dtype):
        return Dtype(str(value).removeprefix("torch."))
    return tuple(_converted(item) for item in value) if isinstance(value, tuple) else value


def _error(what: str) -> KernelError:
    return KernelError(
        what,
        where="the choice of a generated kernel",
        remedy="none is needed: the library computes what would be its",
    )
