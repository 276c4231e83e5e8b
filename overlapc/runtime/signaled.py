"""The ``signaled`` schedule of a chain: which kernel serves it, and running it on a GPU."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
import torch.distributed as dist

from overlapc.codegen import Bands, GemmSpec, build
from overlapc.codegen.tiles import spec_for
from overlapc.errors import KernelError
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.runtime.streams import resident_ctas, run_signaled

log = logging.getLogger(__name__)


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


def fits(a: torch.Tensor, bias: torch.Tensor | None, n: int) -> bool:
    """Return whether the kernels take these operands: on a GPU, with a bias of columns if any."""
    columns_only = bias is None or (bias.numel() == n and bias.shape[-1] == n)
    return a.is_cuda and columns_only


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    log.warning("a signaled plan is computed by the library's GEMM instead: %s", message)
