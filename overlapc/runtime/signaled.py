"""The ``signaled`` schedule of a chain: which kernel serves it, and running it on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from overlapc.codegen import Bands, GemmSpec, build
from overlapc.codegen.epilogue import Call, Dtype, Input
from overlapc.codegen.epilogue import Ref as Place
from overlapc.codegen.lowering import Lowered, gemm_operands, lower
from overlapc.codegen.promotion import CannotLower
from overlapc.codegen.tiles import spec_for
from overlapc.errors import KernelError
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.planning.tiles import Tile
from overlapc.runtime.plans import target_of
from overlapc.runtime.program import ROWS, Program, Ref
from overlapc.runtime.spec import ChainSpec
from overlapc.runtime.streams import resident_ctas, run_signaled

log = logging.getLogger(__name__)

Kernel = Callable[[Sequence[torch.Tensor], dist.ProcessGroup], torch.Tensor | None]
"""Runs a chain on a group; None, with nothing sent, where no kernel fits."""

Facts = tuple[tuple[str, int, tuple[int, ...]], ...]
"""Of each operand: its dtype, its dimensions, and its sizes beside the rows."""


def run(
    plan: Plan,
    target: Target,
    lowered: Lowered,
    operands: Sequence[torch.Tensor],
    group: dist.ProcessGroup,
    options: dist.AllreduceOptions,
) -> torch.Tensor | None:
    """Return the reduced chain, or None, with nothing sent, where no kernel fits the operands.

    The reason is logged once. The caller then sends the same bands from a library GEMM, so that a
    rank that falls back alone still meets its peers.
    """
    sms = target.communication_sms
    a, b = operands[lowered.a], operands[lowered.b]
    try:
        kernel = build(_kernel_spec(target, a, b, lowered, plan.tile))
        Bands.of(plan.rows, kernel.spec.block_m)
        resident_ctas(a.device, sms)
    except KernelError as error:
        _log_once(str(error))
        return None

    def all_reduce(band: torch.Tensor) -> None:
        group.allreduce([band], options).wait()

    kernel = kernel.with_inputs([operands[index] for index in lowered.operands])
    name = group.group_name
    return run_signaled(kernel, a, b, None, plan.rows, all_reduce, sms, group=name)


def kernel_spec_of(
    spec: ChainSpec, target: Target, operands: Sequence[torch.Tensor], tile: Tile | None = None
) -> GemmSpec:
    """Return the kernel that a signaled plan of a chain runs with its tile; fake operands do.

    ``KernelError`` if none does, and if a part of the chain would be left to the library.
    """
    lowered = lowered_chain(spec, operands)
    return _kernel_spec(target, operands[lowered.a], operands[lowered.b], lowered, tile)


def kernel_of(
    spec: ChainSpec,
    plan: Plan,
    operands: Sequence[torch.Tensor],
    options: dist.AllreduceOptions,
) -> Kernel | None:
    """Return what runs a signaled plan of a chain; None for chains that no kernel computes."""
    if not operands[0].is_cuda:
        return None
    try:
        lowered = lowered_chain(spec, operands)
    except KernelError as error:
        _log_once(str(error))
        return None
    target = target_of(spec.target)

    def call(operands: Sequence[torch.Tensor], group: dist.ProcessGroup) -> torch.Tensor | None:
        return run(plan, target, lowered, operands, group, options)

    return call


def lowered_chain(spec: ChainSpec, operands: Sequence[torch.Tensor]) -> Lowered:
    """Return the whole of a chain's program as one kernel's; ``KernelError`` where it is not."""
    if spec.kind != "gemm_all_reduce":
        raise _error(f"No kernel is generated for {spec.kind}.")
    if spec.program.kept:
        raise _error("No kernel stores a value beside what is sent.")
    modes = spec.program.modes
    facts = tuple(
        (str(t.dtype).removeprefix("torch."), t.dim(), tuple(t.shape)[mode == ROWS :])
        for mode, t in zip(modes, operands, strict=True)
    )
    # Tensors of no dimension may live on the host, where no kernel reads them.
    on_host = tuple(t.device.type != operands[0].device.type for t in operands)
    lowered = _lower(spec.program, facts, on_host)
    if isinstance(lowered, str):
        raise _error(lowered)
    return lowered


def _kernel_spec(
    target: Target, a: torch.Tensor, b: torch.Tensor, lowered: Lowered, tile: Tile | None
) -> GemmSpec:
    if not target.architecture:
        raise KernelError(
            f"Target {target.name} does not say for which architecture to generate a kernel.",
            where="the signaled schedule",
            remedy="give a target with field architecture, such as sm_90",
        )
    return spec_for(a, b, architecture=target.architecture, lowered=lowered, tile=tile)


@lru_cache(maxsize=256)
def _lower(program: Program, facts: Facts, on_host: tuple[bool, ...]) -> Lowered | str:
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
        lowered = lower(calls, inputs, results, dtype=dtype, columns=n)
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
        where="the signaled schedule",
        remedy="none is needed: the library computes the bands",
    )


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    log.warning("a signaled plan is computed by the library's GEMM instead: %s", message)
