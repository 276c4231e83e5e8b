"""What an EMULATED link and a library's GEMM take, alone and beside each other: for plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.device import DTYPE, device
from benchmarks.gpu.gemm.emulated_link import LINKS, RING_PASSES, EmulatedLink
from benchmarks.gpu.timing import device_seconds, measure_on_device, warmed_up
from benchmarks.measuring.deadline import Deadline
from overlapc.codegen.oracle import random_operand
from overlapc.planning.curve import Curve
from overlapc.planning.rates import Link
from overlapc.planning.target import Target
from overlapc.runtime.signaled.streams import communication_stream

SIZES = tuple(1 << power for power in (16, 20, 23, 26))
"""Bytes of the tensor of which a collective is timed: 64 KiB to 64 MiB."""
BESIDE = (4096, 8192, 4096)
"""m, n, k of the library's GEMM that runs beside one."""
TIMES = 5
LEAST_SECONDS = 1e-6
"""Of a curve, which has no zero: a fake device may be quicker than its clock."""


def measure(deadline: Deadline, link: str, ranks: int) -> dict[str, Any]:
    """Seconds of each collective by bytes, as emulated and as measured; and both slowdowns."""
    its = LINKS[link](ranks)
    sent = torch.zeros(max(SIZES) // 2, dtype=getattr(torch, DTYPE), device=device())
    target = torch.empty_like(sent)

    def call(collective: str, size: int) -> Callable[[], None]:
        count = size // sent.element_size()
        kept = None if collective != "reduce_scatter" else target[: count // ranks]
        return lambda: its.move(collective, sent[:count], target[:count], kept)

    runs = {f"{kind} {size}": call(kind, size) for kind in RING_PASSES for size in SIZES}
    samples = measure_on_device(runs, deadline, seed=ranks)
    curves = {
        kind: [[size, max(samples.median(f"{kind} {size}"), LEAST_SECONDS)] for size in SIZES]
        for kind in RING_PASSES
    }
    over = [
        seconds / its.seconds(int(size), kind)
        for kind, points in curves.items() for size, seconds in points
    ]  # fmt: skip
    compute, moved = slowdowns(its, call("all_reduce", max(SIZES)))
    return {
        "row": f"EMULATED {link} of {ranks} ranks",
        "SMs": its.ctas,
        "largest time over the nominal one": max(over),
        "torch.mm beside it, times slower": compute,
        "it beside torch.mm, times slower": moved,
        "curves": curves,
    }


def slowdowns(link: EmulatedLink, send: Callable[[], None]) -> tuple[float, float]:
    """How much longer the library's GEMM takes while a collective runs, and the other way round.

    Medians; where there is one of them for shorter than the other, it is repeated.
    """
    m, n, k = BESIDE
    a, b = (random_operand(*its, DTYPE, "cuda") for its in (("row", m, k), ("col", k, n)))
    c = torch.empty(m, n, dtype=a.dtype, device=a.device)
    stream, compute = communication_stream(device(), ("emulated", link)), torch.cuda.current_stream

    def mm() -> None:
        torch.mm(a, b, out=c)

    def median(run: Callable[[], None], on: Any = None) -> float:
        with torch.cuda.stream(on or compute()):
            ahead = warmed_up(run)
            return sorted(device_seconds(run, ahead) for _ in range(TIMES))[TIMES // 2]

    gemm, sent = median(mm), median(send, stream)
    many = max(1, round(1.5 * gemm / max(sent, LEAST_SECONDS)))
    often = max(1, round(1.5 * sent / max(gemm, LEAST_SECONDS)))

    def beside(first: Callable[[], None], times: int, other: Any, run: Callable[[], None]) -> Any:
        def both() -> None:
            other.wait_stream(compute())
            with torch.cuda.stream(other):
                for _ in range(times):
                    first()
            run()

        return both

    usual = compute()
    slower = median(beside(send, many, stream, mm)) / max(gemm, LEAST_SECONDS)
    later = median(beside(mm, often, usual, send), stream) / max(sent, LEAST_SECONDS)
    return max(slower, 1.0), max(later, 1.0)


def with_links(target: Target, rows: Sequence[Mapping[str, Any]], link: str, ranks: int) -> Target:
    """The target with this link alone: as it was measured, or as it is to be where it was not."""
    its = LINKS[link](ranks)
    name = f"EMULATED {link} of {ranks} ranks"
    row = next((row for row in rows if row["row"] == name and "curves" in row), None)

    def curve(kind: str) -> Curve:
        if row is None:
            return Curve(tuple((size, its.seconds(size, kind)) for size in SIZES))
        return Curve(tuple((size, seconds) for size, seconds in row["curves"][kind]))

    links = tuple(
        Link(kind, ranks, alone=curve(kind), queued=curve(kind), issue_seconds=5e-6)
        for kind in RING_PASSES
    )
    slow = {
        "compute_slowdown": row["torch.mm beside it, times slower"],
        "link_slowdown": row["it beside torch.mm, times slower"],
    } if row else {}  # fmt: skip
    return replace(target, links=links, communication_sms=its.ctas, **slow)
