"""An EMULATED all-reduce for one GPU: a copy kernel held to the pace of a link.

It stands for a collective in what it costs others, SMs, memory traffic and time, and reduces
nothing. Whatever is measured with it is to be called emulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

BLOCK = 32768
"""Elements of one step of one CTA: enough bytes in flight for tens of GB/s from a single SM."""
WARPS = 16


@triton.jit(do_not_specialize=["steps", "start_ns", "transfer_ns", "ctas"])
def paced_copy(
    source: tl.tensor,
    target: tl.tensor,
    elements: tl.tensor,
    steps: tl.tensor,
    start_ns: tl.tensor,
    transfer_ns: tl.tensor,
    ctas: tl.tensor,
    PACED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Copy ``source`` to ``target`` round and round in ``steps`` blocks, spread evenly over time.

    Step i ends no sooner than ``start_ns + (i + 1) / steps * transfer_ns`` after the CTA began.
    """
    blocks = tl.cdiv(elements, BLOCK)
    if PACED:
        began = globaltimer()
    for step in tl.range(tl.program_id(0), steps, ctas):
        at = (step % blocks) * BLOCK + tl.arange(0, BLOCK)
        moved = tl.load(source + at, mask=at < elements)
        tl.store(target + at, moved, mask=at < elements)
        if PACED:
            due = began + start_ns + transfer_ns.to(tl.int64) * (step + 1) // steps
            while globaltimer() < due:
                pass


@dataclass(frozen=True)
class EmulatedLink:
    """The cost of an all-reduce over a link, by ring: 2 (ranks - 1) / ranks of the bytes."""

    name: str
    ranks: int
    bytes_per_second: float
    """What one rank sends over its link."""
    alpha_seconds: float
    """What every call costs beside its bytes."""
    ctas: int
    """SMs that the collective occupies."""

    def link_bytes(self, size: int) -> float:
        """What one rank sends for an all-reduce of ``size`` bytes."""
        return 2 * (self.ranks - 1) / self.ranks * size

    def seconds(self, size: int) -> float:
        """What the all-reduce of ``size`` bytes is to take."""
        return self.alpha_seconds + self.link_bytes(size) / self.bytes_per_second

    def all_reduce(self, band: torch.Tensor, received: torch.Tensor, *, paced: bool = True) -> None:
        """Take the time of an all-reduce of ``band`` on the current stream.

        ``received``, of the same size, holds the values that ``band`` had. Reads and writes the
        link's bytes once each: twice the link's bytes of memory traffic, as real collectives cause.
        """
        elements = band.numel()
        # Every round ends with a block that may not be full. One round at least: it must arrive.
        rounds, rest = divmod(max(math.ceil(self.link_bytes(elements)), elements), elements)
        steps = rounds * -(-elements // BLOCK) + -(-rest // BLOCK)
        size = elements * band.element_size()
        kernel: Any = paced_copy
        kernel[(self.ctas,)](
            band, received, elements, steps,
            round(self.alpha_seconds * 1e9),
            round((self.seconds(size) - self.alpha_seconds) * 1e9),
            self.ctas, PACED=paced, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def nvlink_like(ctas: int) -> EmulatedLink:
    """Near an eight-GPU NVLink 4 machine: 400 GB/s of bus bandwidth, 15 us a call; chosen."""
    return EmulatedLink("NVLink-like", 8, 400e9, 15e-6, ctas)


def pcie_like(ctas: int) -> EmulatedLink:
    """Near four GPUs on PCIe 4: 20 GB/s of bus bandwidth, 30 us a call; chosen."""
    return EmulatedLink("PCIe-like", 4, 20e9, 30e-6, ctas)
