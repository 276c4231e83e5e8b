"""Generated kernels of a linear layer as something to run: which one, and what it needs beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from overlapc.codegen.linear_choice import linear_spec_for
from overlapc.codegen.linear_kernel import LinearKernel, build_linear
from overlapc.codegen.linear_spec import MOST_WEIGHTS, LinearSpec
from overlapc.codegen.lowering import Lowered
from overlapc.errors import KernelError
from overlapc.runtime.kernels import lowered_program
from overlapc.runtime.program import Program
from overlapc.runtime.widening import loaded

Run = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def linear_kernel_spec(
    program: Program, operands: Sequence[torch.Tensor], way: str, rows: int, *,
    architecture: str, sms: int,
) -> tuple[LinearSpec, Lowered]:  # fmt: skip
    """The kernel that computes a program of so many rows in this way. Fake operands do.

    KernelError where none does.
    """
    lowered = lowered_layer(program, operands)
    operands = loaded(program).operands(operands)
    weights = [operands[index] for index in (lowered.b, *lowered.others)]
    spec = linear_spec_for(
        way, rows, operands[lowered.a], weights, lowered, architecture=architecture, sms=sms
    )
    return spec, lowered


def lowered_layer(program: Program, operands: Sequence[torch.Tensor]) -> Lowered:
    """Return a layer as one kernel's, which widens its weights; ``KernelError`` where it is not."""
    its = loaded(program)
    return lowered_program(its.program, its.operands(operands), MOST_WEIGHTS)


def by_kernel(program: Program, spec: LinearSpec, lowered: Lowered) -> Run:
    """Return a run of the whole program by its kernel; it loads and launches at the first call."""
    from triton.errors import TritonError

    kernel, its = build_linear(spec), loaded(program)
    out = getattr(torch, spec.out)

    def run(operands: Sequence[torch.Tensor]) -> torch.Tensor:
        operands = its.operands(operands)
        x = operands[lowered.a]
        weights = [operands[index] for index in (lowered.b, *lowered.others)]
        c = torch.empty((x.shape[0], weights[0].shape[1]), dtype=out, device=x.device)
        inputs = [operands[index] for index in lowered.operands]
        parts, arrivals = _workspace(kernel, c)
        try:
            kernel(x, weights, c, inputs=inputs, parts=parts, arrivals=arrivals)
        except TritonError as error:  # it cannot be compiled, or takes too much of the device
            raise KernelError(
                f"Triton cannot run its kernel: {error}.",
                where=str(spec),
                remedy="none is needed: the library computes it",
            ) from error
        return c

    return run


def _workspace(
    kernel: LinearKernel, c: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What a split k needs of its own, made at every call: what a call kept would be of the pool of
    a CUDA graph, and a graph may be replayed on any stream, beside whatever runs there."""
    if kernel.spec.splits == 1:
        return None, None
    n, device = c.shape[1], c.device
    parts = torch.empty(kernel.part_elements(n), dtype=torch.float32, device=device)
    return parts, torch.zeros(kernel.tiles(n), dtype=torch.int32, device=device)
