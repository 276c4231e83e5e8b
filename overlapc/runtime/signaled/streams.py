"""The order of launches that overlaps a signaling GEMM with collectives on a second stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from overlapc.errors import KernelError
from overlapc.runtime.signaled.signals import Signals
from overlapc.runtime.signaled.waiting import driver_wait, hold

log = logging.getLogger(__name__)

Collective = Callable[[], object]
"""Sends one band on the current stream, to memory that is already there."""

_warm: set[Hashable] = set()


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


def warmth(kernel: Hashable, group: Hashable, sizes: Iterable[int]) -> frozenset[Hashable]:
    """What has to be loaded before it may stand behind a waiter: a kernel, and collectives.

    ``sizes``: bytes of each. A library picks how to send by size, so that one that has sent a
    size of the same power of two has everything loaded.
    """
    collectives = {("collective", group, size.bit_length()) for size in sizes}
    return frozenset({("kernel", kernel), *collectives})


def is_warm(needed: frozenset[Hashable]) -> bool:
    """Whether everything has run before; KernelError if not, and a graph is being captured.

    Ask before anything of an op is launched: whoever is refused here can still fall back.
    """
    if needed <= _warm:
        return True
    if torch.cuda.is_current_stream_capturing():
        missing = ", ".join(sorted(map(str, needed - _warm)))
        raise KernelError(
            "Kernels and collectives cannot be loaded during graph capture.",
            where=missing,
            remedy="run once with these sizes before the capture",
        )
    return False


def overlap(
    gemm: Callable[[], object],
    signals: Signals,
    collectives: Sequence[Collective],
    communication: torch.cuda.Stream,
    needed: frozenset[Hashable],
    *,
    max_polls: int = 0,
) -> None:
    """Launch a GEMM that bumps ``signals``, and each band's collective as soon as it is whole.

    All memory that ``gemm`` and ``collectives`` touch exists, and outlives this call; ``signals``
    were zeroed on the current stream. Every collective is called once, in order, whatever happens
    on this rank. When this returns, whatever follows on the current stream finds all of it done.
    KernelError, with nothing sent, where the GEMM cannot be launched, or ``is_warm`` refuses.

    Unless ``is_warm(needed)`` nothing overlaps: nothing may be loaded behind a spinning waiter, so
    that everything waits for the whole GEMM. With ``max_polls`` (debugging; not in a capture) a
    waiter gives up, the host waits for the end, and a band that never came raises SignalError.
    """
    warm = is_warm(needed)
    device = signals.storage.device
    with torch.cuda.device(device):
        if not warm:
            driver_wait(device)
        compute = torch.cuda.current_stream(device)
        # The fork: after the counters are zero; in a capture it takes this stream into the graph.
        communication.wait_stream(compute)
        try:
            _launch(gemm)
            if not warm:
                communication.wait_stream(compute)
            waiter = _Waiter(signals, hold if warm else Signals.wait, compute, max_polls)
            with torch.cuda.stream(communication):
                for group, collective in enumerate(collectives):
                    waiter(group, communication)
                    collective()
        finally:
            # The join, after an error too: this stream may now reuse what the other one reads.
            compute.wait_stream(communication)
        _warm.update(needed)
        if max_polls:
            signals.raise_if_given_up()


@dataclass
class _Waiter:
    """Holds a stream until a group is whole; where it cannot, until the whole GEMM has ended.

    An error here would leave the peers alone with collectives that this rank never sends.
    """

    signals: Signals
    wait: Callable[[Signals, int, int], None] | None
    compute: torch.cuda.Stream
    max_polls: int

    def __call__(self, group: int, stream: torch.cuda.Stream) -> None:
        if self.wait is None:
            return
        try:
            self.wait(self.signals, group, self.max_polls)
        except Exception as error:
            log.warning("groups are sent after the whole GEMM, for no waiter runs: %r", error)
            stream.wait_stream(self.compute)
            self.wait = None


def _launch(gemm: Callable[[], object]) -> None:
    """Launch the GEMM; KernelError for whatever keeps it from it, too little memory among them."""
    try:
        gemm()
    except KernelError:
        raise
    except Exception as error:
        raise KernelError(
            f"The GEMM cannot be launched: {error}",
            where="a signaled GEMM",
            remedy="use the chunked schedule, which leaves the GEMM to the library",
        ) from error
