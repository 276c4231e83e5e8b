"""What plans assume of a GPU, measured: rates of kernels beside the library's, and of signals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

from benchmarks.gpu.device import DTYPE, architecture, device, require_clock, sms
from benchmarks.gpu.gemm.checks import equal_bands
from benchmarks.gpu.timing import measure_on_device
from benchmarks.measuring.deadline import Deadline
from overlapc.codegen import Kernel, build
from overlapc.codegen.oracle import random_operand
from overlapc.codegen.templates.signal import publish
from overlapc.codegen.tiles import spec_for
from overlapc.planning.target import Target
from overlapc.planning.tiles import SWEEP, tiles_for
from overlapc.runtime.signaled.signals import Signals
from overlapc.runtime.signaled.streams import communication_stream
from overlapc.runtime.signaled.waiting import DriverWait, driver_wait, hold

WAVES = (1, 4)
DEPTHS = (2048, 8192)
"""Of the products whose times give a rate: whole waves of tiles, and two lengths along k."""
SAMPLES = 50
DELAY_NS = 1_000_000
"""For which a signal is held back, so that who waits for it is there before."""


@dataclass(frozen=True)
class Fit:
    """Seconds of a GEMM: ``launch + waves * (beside + k * step)``."""

    launch: float
    beside: float
    """Of a wave, beside its products: first loads, stores, the signal."""
    step: float
    """Of a wave, for each element along k."""

    @classmethod
    def of(cls, seconds: Mapping[tuple[int, int], float]) -> Fit:
        """From the seconds of few and many waves, and of two depths: four of them."""
        (few, many), (short, deep) = (sorted(set(its)) for its in zip(*seconds, strict=True))
        step = (seconds[many, deep] - seconds[many, short]) / (many * (deep - short))
        wave = (seconds[many, short] - seconds[few, short]) / (many - few)
        return cls(seconds[few, short] - few * wave, wave - short * step, step)

    def flops_per_second(self, elements: int) -> float:
        """Of waves of so many elements of C."""
        return 2.0 * elements / self.step


def tile_rates(deadline: Deadline, number: int) -> dict[str, Any]:
    """One tile configuration on whole waves of all SMs, and ``torch.mm`` on the same sizes."""
    tile = tiles_for(architecture(), DTYPE)[number]
    down, across = near_square(sms())
    sizes = [(w, k) for w in WAVES for k in DEPTHS]
    runs: dict[str, Callable[[], object]] = {}
    for w, k in sizes:
        a = random_operand("row", down * w * tile.block_m, k, DTYPE, "cuda")
        b = random_operand("col", k, across * tile.block_n, DTYPE, "cuda")
        c = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
        kernel = build(spec_for(a, b, architecture=architecture(), tile=tile))
        runs[f"ours {w} {k}"] = alone(kernel, a, b, c, sms())
        runs[f"torch.mm {w} {k}"] = lambda a=a, b=b, c=c: torch.mm(a, b, out=c)
    samples = measure_on_device(runs, deadline, seed=number)
    fits = {
        who: Fit.of({(w, k): samples.median(f"{who} {w} {k}") for w, k in sizes})
        for who in ("ours", "torch.mm")
    }
    ours, library = fits["ours"], fits["torch.mm"]
    if min(ours.step, library.step) <= 0:
        raise ValueError(f"products that are deeper took no longer: {fits}")
    elements = sms() * tile.elements
    return {
        "row": str(tile),
        "TFLOP/s": ours.flops_per_second(elements) / 1e12,
        "torch.mm TFLOP/s": library.flops_per_second(elements) / 1e12,
        "share of torch.mm": library.step / ours.step,
        "us of a wave beside its products": 1e6 * ours.beside,
        "us of a launch": 1e6 * ours.launch,
        "torch.mm us of a launch": 1e6 * library.launch,
        "rounds": samples.rounds,
        "ms": {name: 1e3 * samples.median(name) for name in runs},
    }


def alone(
    kernel: Kernel, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, ctas: int, parts: int = 1,
    *, zeroes: bool = True, sweep: int = SWEEP,
) -> Callable[[], object]:  # fmt: skip
    """Launches of a GEMM alone, with zeroed counters as an op has them; or with counters that are
    there, and only grow: nobody waits for them here."""
    bands = equal_bands(kernel.spec.block_m, a.shape[0], parts)

    def counted() -> Signals:
        return Signals.zeroed(bands, kernel.tiles_n(b.shape[1]), c.device)

    kept = counted() if kernel.spec.signals and not zeroes else None

    def run() -> None:
        signals = counted() if kernel.spec.signals and zeroes else kept
        kernel(a, b, c, ctas=ctas, sweep=sweep, bands=signals and signals.bands,
               counters=signals and signals.counters)  # fmt: skip

    return run


def near_square(count: int) -> tuple[int, int]:
    """Two factors of a number, as near each other as they can be, the greater first."""
    low = next(low for low in range(math.isqrt(count), 0, -1) if count % low == 0)
    return count // low, low


@triton.jit(do_not_specialize=["delay_ns"])
def announce(times: tl.tensor, counter: tl.tensor, delay_ns: tl.tensor) -> None:
    """Some time after it began, note the time and bump a counter as a tile does. NVIDIA only."""
    due = globaltimer() + delay_ns.to(tl.int64)
    while globaltimer() < due:  # pyright: ignore[reportOperatorIssue]
        pass
    tl.store(times, globaltimer())
    publish(counter, 0, COUNTER_STRIDE=1, IS_AMD=False, FLATTEN=False)


@triton.jit
def arrive(times: tl.tensor) -> None:
    """Note the time at which a kernel behind a waiter begins."""
    tl.store(times + 1, globaltimer())


@triton.jit
def tick(times: tl.tensor) -> None:
    """Note how far the clock of kernels goes at once: no time that it tells is finer."""
    begun = globaltimer()
    first = begun
    while first == begun:
        first = globaltimer()
    second = first
    while second == first:
        second = globaltimer()
    tl.store(times, second - first)  # pyright: ignore[reportOperatorIssue]


def signals(deadline: Deadline, by: str) -> dict[str, Any]:
    """From a signal to the begin of a kernel that waits for it, by the driver or by a kernel."""
    require_clock()
    if by == "driver" and not isinstance(found := driver_wait(device()), DriverWait):
        return {"row": by, "skipped": found}
    wait = hold if by == "driver" else Signals.wait
    taken = [_signal_seconds(wait) for _ in range(SAMPLES + 1)][1:]
    tail = sorted(taken)[-1 - SAMPLES // 20]
    return {
        "row": by,
        "us from a signal to the start": 1e6 * statistics.median(taken),
        "us, 95th percentile": 1e6 * tail,
        "us of a tick of their clock": 1e-3 * _tick_ns(),
    }


def _tick_ns() -> int:
    times = torch.zeros(1, dtype=torch.int64, device=device())
    kernel: Any = tick
    kernel[(1,)](times, num_warps=1)
    return int(times.item())


def _signal_seconds(wait: Callable[[Signals, int], None]) -> float:
    stream = communication_stream(device(), "signals")
    times = torch.zeros(2, dtype=torch.int64, device=device())
    signal = Signals.of(times, (1,))
    kernels: Any = (announce, arrive)
    stream.wait_stream(torch.cuda.current_stream())
    kernels[0][(1,)](times, signal.storage, DELAY_NS, num_warps=1)
    with torch.cuda.stream(stream):
        wait(signal, 0)
        kernels[1][(1,)](times, num_warps=1)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    begin, end = times.tolist()
    return (end - begin) * 1e-9


def numbers_of(
    rates: Sequence[Mapping[str, Any]], waits: Sequence[Mapping[str, Any]], shipped: Target
) -> dict[str, float]:
    """What a target file holds, by its fields, of the rows that there are; "share of TILE" is the
    share of a tile configuration of the best one (`planning.tiles`)."""
    found: dict[str, float] = {}
    measured = [row for row in rates if "TFLOP/s" in row]
    if measured:
        best = max(measured, key=lambda row: row["TFLOP/s"])
        library = max(row["torch.mm TFLOP/s"] for row in measured)
        memory = next(r.memory_bytes_per_second for r in shipped.gemm if r.dtype == DTYPE)
        tiles = {str(tile): tile for tile in tiles_for(shipped.architecture, DTYPE)}
        stored = 2 * next(r.resident for r in shipped.gemm) * tiles[best["row"]].elements
        beside = best["us of a wave beside its products"] * 1e-6
        found = {
            "flops_per_second": library * 1e12,
            "launch_seconds": max(best["torch.mm us of a launch"], 0.0) * 1e-6,
            "generated_share": min(best["TFLOP/s"] / library, 1.0),
            "tile_seconds": max(beside - (stored / memory if memory else 0.0), 0.0),
        }
        found |= {f"share of {r['row']}": r["TFLOP/s"] / best["TFLOP/s"] for r in measured}
    latencies = [row for row in waits if "us from a signal to the start" in row]
    if latencies:
        # The driver's wait is what ops take where there is one, and it is measured first.
        found["signal_seconds"] = max(latencies[0]["us from a signal to the start"], 0.0) * 1e-6
    return found


def measured_target(shipped: Target, numbers: Mapping[str, float]) -> Target:
    """The target with what was measured of this device."""
    rates = {"flops_per_second", "launch_seconds", "generated_share"} & set(numbers)
    whole = {"tile_seconds", "signal_seconds"} & set(numbers)
    gemm = tuple(
        replace(its, **{name: numbers[name] for name in rates}) if its.dtype == DTYPE else its
        for its in shipped.gemm
    )
    return replace(shipped, gemm=gemm, **{name: numbers[name] for name in whole})
