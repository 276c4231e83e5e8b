"""How long a linear layer of few rows takes in each way, in a CUDA graph, with weights from memory.

A model: its figures are published or assumed, and none was measured by us. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from overlapc.planning.linear.regions import BYTES, LinearProblem
from overlapc.planning.linear.tiles import FLAT, rows_of_tile, splits_for, tile_for
from overlapc.planning.shared_memory import shared_bytes
from overlapc.planning.target import Target


@dataclass(frozen=True)
class Figures:
    """What a target does not say."""

    reading: float
    """Share of the rates of memory and of the last cache that kernels reach which wait for
    nothing."""
    multiplying: float
    """Share of the rates of GEMMs that such kernels reach."""
    latency: float
    """Seconds from a load to its data."""
    gap: float
    """Seconds from the end of one kernel of a CUDA graph to the work of the next."""
    adapts: bool
    """Whether the library splits k where columns are few, and does not pad a single row."""


LIKELY = Figures(0.91, 0.85, 6.5e-7, 1.3e-6, adapts=True)
"""Published: reads reach 91 % of a datasheet's rate; on an H100 the latency is 0.65 us, the gap 1.3
us. The share of multiplying is assumed, as `rates.ASSUMED_SHARE` is."""
BEST = Figures(1.1, 1.42, 5e-7, 0.0, adapts=True)
"""A copy of memory is up to 10 % slower than reading, and a GEMM 30 % than the datasheet: what
targets say may be of either."""
WORST = Figures(0.4, 0.4, 1e-6, 4e-6, adapts=False)
"""Published of cuBLAS on H100: 40 % of memory's rate at 16 x 2752 x 4096. The latency is that under
load, the gap a launch by the host."""

LIBRARY_ROWS, LIBRARY_COLUMNS, LIBRARY_IN_FLIGHT = 64, 128, 48 << 10
"""A tile of a library's GEMM of few rows, and bytes of its weight on their way: assumed, three
steps of 64 k. It gives 16 x 2752 x 4096 on an H100 48 % of memory's rate."""
SPLITS = (1, 2, 4, 8, 16)
"""CTAs that a library that adapts may let share k; another kernel adds their parts."""
RESIDENT_WARPS = 16
"""On a multiprocessor, of threads with 128 registers each."""


@dataclass(frozen=True)
class Device:
    """What a target says that these costs depend on."""

    architecture: str
    sms: int
    memory: float
    """Bytes a second."""
    cache: float
    """Bytes a second, of the last cache before memory."""
    matrix: float
    """Operations a second of GEMMs of the rows' dtype."""
    ordinary: float
    """And of float32."""

    @staticmethod
    def of(target: Target, dtype: str) -> Device | None:
        """None where the target says too little, as those of processors do.

        A calibrated one has no rate of memory by itself: that of pointwise work stands in.
        """
        rates, float32 = target.rates_of(dtype), target.rates_of("float32")
        if rates is None or float32 is None or not target.architecture:
            return None
        memory = rates.memory_bytes_per_second or rates.pointwise_bytes_per_second
        if memory is None:
            return None
        return Device(
            target.architecture,
            rates.resident,
            memory,
            target.l2_bytes_per_second or inf,
            rates.flops_per_second,
            float32.flops_per_second,
        )


@dataclass(frozen=True)
class Kernel:
    """One launch that multiplies by a weight."""

    ctas: int
    resident: int
    """On one multiprocessor."""
    in_flight: int
    """Bytes of the weight that one CTA asks for ahead."""
    weight: int
    """Bytes that all CTAs read of the weight."""
    rows: int
    """Bytes that each reads of the rows comes to, and is read again from the last cache."""
    beside: int
    """Bytes of rows and results in memory."""
    operations: float
    rate: float
    """Operations a second, of all multiprocessors."""

    def seconds(self, device: Device, figures: Figures) -> float:
        """The longest of reading memory, waiting for it, reading the cache, and multiplying."""
        rounds = -(-self.ctas // (self.resident * device.sms))
        waves = -(-self.ctas // device.sms)
        return figures.gap + max(
            (self.weight + self.beside) / (figures.reading * device.memory),
            rounds * self.weight / self.ctas / self.in_flight * figures.latency,
            (self.weight + self.rows) / (figures.reading * device.cache),
            waves * device.sms * self.operations / self.ctas / (figures.multiplying * self.rate),
        )


def ours(
    problem: LinearProblem, way: str, rows: int, device: Device, figures: Figures
) -> float | None:
    """Seconds of a generated kernel; None where there is none."""
    p, padded = problem, rows_of_tile(way, rows)
    if padded is None:
        return None
    pair = p.weights > 1
    tile = tile_for(
        way, device.architecture, p.dtype, p.layout, rows=padded, pair=pair, held=p.held
    )
    if tile is None:
        return None
    splits = splits_for(tile, p.columns, p.k, device.sms)
    tiles = sum(-(-n // tile.block_n) for n in (p.n, *p.more))
    item, step = BYTES[p.dtype], tile.block_k
    held = BYTES[p.held or p.dtype]
    block = tile.step_bytes(way, p.weights, held)
    fit = shared_bytes(device.architecture) // (tile.stages * (block + padded * step * item))
    # Each of gemv's products is an operation, and so is widening what it is of.
    widened = p.dtype != "float32" or bool(p.held)
    each = 2 * padded if way == FLAT else 2 * rows + widened
    kernel = Kernel(
        ctas=tiles * splits,
        resident=max(1, min(fit, RESIDENT_WARPS // tile.warps)),
        in_flight=tile.bytes_ahead(way, p.weights, held),
        weight=p.weight_bytes,
        rows=tiles * rows * p.k * item,
        beside=rows * (p.k + p.columns) * item,
        operations=float(each * p.weights * tiles * tile.block_n * p.k),
        rate=device.matrix if way == FLAT else device.ordinary,
    )
    parts = 0.0
    if splits > 1:  # written, and read by the CTA that comes last, which waits for either
        moved = 8 * splits * padded * p.weights * p.columns
        parts = 2 * figures.latency + moved / (figures.reading * device.cache)
    return kernel.seconds(device, figures) + parts


def library(problem: LinearProblem, rows: int, device: Device, figures: Figures) -> float:
    """Seconds of a GEMM for each weight, and of what a library's GEMM does not do beside it.

    A norm before, a weight that is widened to a copy, and all ops after a result, which Inductor
    fuses, are a pass each.
    """
    p, item = problem, BYTES[problem.dtype]

    def passing(moved: int) -> float:
        return figures.gap + moved / (figures.reading * device.memory)

    seconds = passing(2 * rows * p.k * item) if p.before else 0.0
    for n in (p.n, *p.more):
        for _ in range(p.weights):
            if p.held:
                seconds += passing(n * p.k * (BYTES[p.held] + item))
            splits = SPLITS if figures.adapts else (1,)
            seconds += min(_gemm(n, p.k, item, s, rows, device, figures) for s in splits)
        if p.epilogue:
            seconds += passing((p.weights + 1) * rows * n * item)
    return seconds


def _gemm(
    n: int, k: int, item: int, splits: int, rows: int, device: Device, figures: Figures
) -> float:
    across, down = -(-n // LIBRARY_COLUMNS), -(-rows // LIBRARY_ROWS)
    padded = 1 if rows == 1 and figures.adapts else down * LIBRARY_ROWS
    kernel = Kernel(
        ctas=across * down * splits,
        resident=1,
        in_flight=LIBRARY_IN_FLIGHT,
        weight=n * k * item,
        rows=across * rows * k * item,
        beside=rows * (k + n) * item,
        operations=2.0 * padded * across * LIBRARY_COLUMNS * k,
        rate=device.matrix,
    )
    parts = 8 * splits * rows * n / (figures.reading * device.cache) + figures.gap
    return kernel.seconds(device, figures) + (parts if splits > 1 else 0.0)
