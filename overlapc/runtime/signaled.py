"""The ``signaled`` schedule of a chain: which kernel serves it, and running it on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.distributed as dist

from overlapc.codegen import Bands, GemmSpec, build
from overlapc.codegen.tiles import spec_for
from overlapc.errors import KernelError
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.runtime.plans import target_of
from overlapc.runtime.program import Ref, Step
from overlapc.runtime.spec import ChainSpec
from overlapc.runtime.streams import resident_ctas, run_signaled

log = logging.getLogger(__name__)

Kernel = Callable[[Sequence[torch.Tensor], dist.ProcessGroup], torch.Tensor | None]
"""Runs a chain on a group; None, with nothing sent, where no kernel fits."""


def kernel_spec(
    target: Target, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None
) -> GemmSpec:
    """Return the kernel for ``a[m, k] @ b[k, n] (+ bias)``; fake tensors do.

    Raises ``KernelError`` for what no kernel is generated for.
    """
    if not target.architecture:
        raise KernelError(
            f"Target {target.name} does not say for which architecture to generate a kernel.",
            where="the signaled schedule",
            remedy="give a target with field architecture, such as sm_90",
        )
    return spec_for(a, b, architecture=target.architecture, bias=bias is not None)


def run(
    plan: Plan,
    target: Target,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    group: dist.ProcessGroup,
    options: dist.AllreduceOptions,
) -> torch.Tensor | None:
    """Return the reduced product, or None, with nothing sent, where no kernel fits the operands.

    The reason is logged once. The caller then sends the same bands from a library GEMM, so that a
    rank that falls back alone still meets its peers.
    """
    sms = target.communication_sms
    try:
        kernel = build(kernel_spec(target, a, b, bias))
        Bands.of(plan.rows, kernel.spec.block_m)
        resident_ctas(a.device, sms)
    except KernelError as error:
        _log_once(str(error))
        return None

    def all_reduce(band: torch.Tensor) -> None:
        group.allreduce([band], options).wait()

    flat = None if bias is None else bias.reshape(-1).contiguous()
    return run_signaled(kernel, a, b, flat, plan.rows, all_reduce, sms, group=group.group_name)


def kernel_spec_of(spec: ChainSpec, target: Target, operands: Sequence[torch.Tensor]) -> GemmSpec:
    """Return the kernel that a signaled plan of a chain runs; ``KernelError`` if none does."""
    places = _places(spec)
    if places is None:
        raise KernelError(
            "No kernel is generated for a chain of more than one GEMM and its bias.",
            where="the signaled schedule",
            remedy="none is needed: the library computes the bands",
        )
    a, b, bias = places
    return kernel_spec(target, operands[a], operands[b], None if bias is None else operands[bias])


def kernel_of(
    spec: ChainSpec,
    plan: Plan,
    operands: Sequence[torch.Tensor],
    options: dist.AllreduceOptions,
) -> Kernel | None:
    """Return what runs a signaled plan of a chain; None for chains that no kernel computes."""
    places = _places(spec)
    if places is None or not operands[0].is_cuda:
        return None
    at_a, at_b, at_bias = places
    bias = None if at_bias is None else operands[at_bias]
    n = operands[at_b].shape[1]
    if bias is not None and not (bias.numel() == n and bias.shape[-1] == n):
        return None  # kernels take a bias of columns
    target = target_of(spec.target)

    def call(operands: Sequence[torch.Tensor], group: dist.ProcessGroup) -> torch.Tensor | None:
        bias = None if at_bias is None else operands[at_bias]
        return run(plan, target, operands[at_a], operands[at_b], bias, group, options)

    return call


def _places(spec: ChainSpec) -> tuple[int, int, int | None] | None:
    """Which operands are a, b and bias of a chain whose program is one GEMM, which is sent."""
    program = spec.program
    if spec.kind != "gemm_all_reduce" or len(program.steps) != 1 or program.kept:
        return None
    if program.sent != Ref("value", 0):
        return None
    match program.steps[0]:
        case Step("aten.mm.default", (Ref("operand", a), Ref("operand", b)), ()):
            return a, b, None
        case Step(
            "aten.addmm.default",
            (Ref("operand", bias), Ref("operand", a), Ref("operand", b)),
            (),
        ):
            return a, b, bias
    return None


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    log.warning("a signaled plan is computed by the library's GEMM instead: %s", message)
