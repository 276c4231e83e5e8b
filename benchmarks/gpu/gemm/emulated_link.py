"""EMULATED collectives for one GPU: a copy kernel held to the pace of a link.

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

from benchmarks.gpu.device import require_clock

BLOCK = 32768
"""Elements of one step of one CTA: enough bytes in flight for tens of GB/s from a single SM."""
WARPS = 16

RING_PASSES = {"all_reduce": 2, "reduce_scatter": 1, "all_to_all": 1}
"""How often a ring takes a tensor round, or as many bytes as an all-to-all sends."""


# Whether where tensors end is a multiple of 16 is compiled in: else every mask cuts what is loaded
# and stored to single elements, by which an SM does not keep the pace.
@triton.jit(do_not_specialize=["steps", "start_ns", "transfer_ns", "ctas"])
def paced_copy(
    source: tl.tensor,
    target: tl.tensor,
    kept: tl.tensor,
    elements: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    steps: tl.tensor,
    start_ns: tl.tensor,
    transfer_ns: tl.tensor,
    ctas: tl.tensor,
    PACED: tl.constexpr,
    KEEPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Copy ``source`` to ``target`` round and round in ``steps`` blocks, spread evenly over time.

    Step i ends no sooner than ``start_ns + (i + 1) / steps * transfer_ns`` after the CTA began.
    With KEEPS the elements from ``first`` to ``last`` go to ``kept`` as well.
    """
    blocks = tl.cdiv(elements, BLOCK)
    if PACED:
        began = globaltimer()
    for step in tl.range(tl.program_id(0), steps, ctas):
        at = (step % blocks) * BLOCK + tl.arange(0, BLOCK)
        moved = tl.load(source + at, mask=at < elements)
        tl.store(target + at, moved, mask=at < elements)
        if KEEPS:
            tl.store(kept + (at - first), moved, mask=(at >= first) & (at < last))
        if PACED:
            due = began + start_ns + transfer_ns.to(tl.int64) * (step + 1) // steps
            while globaltimer() < due:
                pass


@dataclass(frozen=True)
class EmulatedLink:
    """The cost of collectives over a link, by ring: (ranks - 1) / ranks of the bytes a pass."""

    name: str
    ranks: int
    bytes_per_second: float
    """What one rank sends over its link."""
    alpha_seconds: float
    """What every call costs beside its bytes."""
    ctas: int
    """SMs that a collective occupies."""

    def link_bytes(self, size: int, collective: str = "all_reduce") -> float:
        """What one rank sends for a collective over ``size`` bytes, whole on one rank."""
        return RING_PASSES[collective] * (self.ranks - 1) / self.ranks * size

    def seconds(self, size: int, collective: str = "all_reduce") -> float:
        """What the collective over ``size`` bytes is to take."""
        return self.alpha_seconds + self.link_bytes(size, collective) / self.bytes_per_second

    def move(
        self,
        collective: str,
        sent: torch.Tensor,
        target: torch.Tensor,
        kept: torch.Tensor | None = None,
        first: int = 0,
        *,
        paced: bool = True,
    ) -> None:
        """Take the time of a collective that sends ``sent``, on the current stream.

        ``target``, of the same size, and ``kept``, of the elements from ``first`` on, then hold the
        values that ``sent`` had; all are contiguous. Reads and writes the link's bytes once each:
        twice the link's bytes of memory traffic, as real collectives cause. Skipped on AMD.
        """
        if paced:
            require_clock()
        elements = sent.numel()
        if not elements:
            return
        # Every round ends with a block that may not be full. One round at least: it must arrive.
        wanted = math.ceil(self.link_bytes(elements, collective))
        rounds, rest = divmod(max(wanted, elements), elements)
        steps = rounds * -(-elements // BLOCK) + -(-rest // BLOCK)
        size = elements * sent.element_size()
        kernel: Any = paced_copy
        kernel[(self.ctas,)](
            sent, target, target if kept is None else kept, elements,
            first, first + (0 if kept is None else kept.numel()), steps,
            round(self.alpha_seconds * 1e9),
            round((self.seconds(size, collective) - self.alpha_seconds) * 1e9),
            self.ctas, PACED=paced, KEEPS=kept is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def nvlink_like(ranks: int) -> EmulatedLink:
    """Near an NVLink 4 machine: 400 GB/s of bus bandwidth, 15 us a call, 16 SMs; chosen."""
    return EmulatedLink("NVLink-like", ranks, 400e9, 15e-6, 16)


def pcie_like(ranks: int) -> EmulatedLink:
    """Near GPUs on PCIe 4: 20 GB/s of bus bandwidth, 30 us a call, 8 SMs; chosen."""
    return EmulatedLink("PCIe-like", ranks, 20e9, 30e-6, 8)


LINKS = {"NVLink-like": nvlink_like, "PCIe-like": pcie_like}
