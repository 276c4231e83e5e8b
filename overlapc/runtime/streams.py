"""The order of launches that overlaps a signaling GEMM with collectives on a second stream."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache

import torch

from overlapc.codegen import Bands, Kernel
from overlapc.errors import KernelError
from overlapc.runtime.signals import Signals

AllReduce = Callable[[torch.Tensor], None]
"""Reduces a contiguous band in place on the current stream; on every rank, in the same order."""

_warm: set[tuple[Hashable, ...]] = set()


@cache
def communication_stream(device: torch.device, group: Hashable = None) -> torch.cuda.Stream:
    """The one stream on which this device talks to ``group``; it goes first where SMs are free."""
    # A static method, which torch's stubs call one of instances.
    _, highest = torch.cuda.Stream.priority_range()  # pyright: ignore[reportCallIssue]
    return torch.cuda.Stream(device, priority=highest)


def resident_ctas(device: torch.device, sms_for_comm: int) -> int:
    """CTAs that stay resident, one an SM, beside ``sms_for_comm`` SMs left to the collective.

    Collectives need whole SMs. A smaller grid leaves them only if no two CTAs share an SM, which is
    what one CTA an SM comes to; KernelError where nothing would be left for the GEMM.
    """
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    if not 0 <= sms_for_comm < sms:
        raise KernelError(
            f"{sms_for_comm} of {sms} SMs cannot be left to the collective.",
            where=str(device),
            remedy="leave at least one SM to the GEMM",
        )
    return sms - sms_for_comm


def run_signaled(
    kernel: Kernel,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    rows_per_group: Sequence[int],
    all_reduce: AllReduce,
    sms_for_comm: int,
    *,
    group: Hashable = None,
    max_polls: int = 0,
) -> torch.Tensor:
    """C[m, n] = all-reduce of ``a @ b (+ bias)``, each band on its way while the rest computes.

    ``all_reduce`` is called once a band, top to bottom, whatever happens on this rank. C is ready
    on the current stream when this returns. The first call of a kernel with a group overlaps
    nothing: it compiles and loads all that later calls launch, since nothing may be loaded behind
    a spinning waiter. KernelError where operands or rows do not fit, or in a capture before that
    first call. With ``max_polls`` (debugging; not in a capture) the host waits, and a band that
    never came raises.
    """
    device = a.device
    bands = Bands.of(rows_per_group, kernel.spec.block_m)
    if sum(bands.rows) != a.shape[0] or not kernel.spec.signals:
        raise KernelError(
            "These bands do not fit: their rows add up to those of A, and the kernel signals.",
            where=f"bands of {bands.rows} rows, A of {a.shape[0]}, {kernel.spec}",
            remedy="plan for these sizes",
        )
    with torch.cuda.device(device):
        warm = _is_warm(kernel, device, group)
        out = a.new_empty(a.shape[0], b.shape[1], dtype=getattr(torch, kernel.spec.out))
        signals = Signals.zeroed(bands, kernel.tiles_n(b.shape[1]), device)
        compute = torch.cuda.current_stream(device)
        communication = communication_stream(device, group)
        # The fork: after the counters are zero; in a capture it takes this stream into the graph.
        communication.wait_stream(compute)
        kernel(
            a, b, out, bias=bias, bands=signals.bands, counters=signals.counters,
            ctas=resident_ctas(device, sms_for_comm),
        )  # fmt: skip
        if not warm:
            communication.wait_stream(compute)
        try:
            with torch.cuda.stream(communication):
                for index, rows in enumerate(bands.slices):
                    signals.wait(index, max_polls)
                    all_reduce(out[rows])
        finally:
            # The join, after an error too: this stream may now reuse what the other one reads.
            compute.wait_stream(communication)
        _warm.add((kernel.spec, device, group))
        if max_polls:
            signals.raise_if_given_up()
    return out


def _is_warm(kernel: Kernel, device: torch.device, group: Hashable) -> bool:
    if (kernel.spec, device, group) in _warm:
        return True
    if torch.cuda.is_current_stream_capturing():
        raise KernelError(
            "A kernel cannot be compiled and loaded during graph capture.",
            where=str(kernel.spec),
            remedy="run once before the capture",
        )
    return False
