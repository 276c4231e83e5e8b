"""The signaled GEMM on one GPU: right, then fast, then overlapped with an EMULATED link."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.emulated_link import EmulatedLink, nvlink_like, pcie_like
from benchmarks.gpu_timing import Deadline, measure_on_device
from benchmarks.paired import Samples
from overlapc.codegen import Bands, GemmSpec, Kernel, build
from overlapc.codegen.oracle import error_over_bound, random_operand
from overlapc.codegen.tiles import spec_for
from overlapc.planning.tiles import tiles_for
from overlapc.runtime.signals import Signals
from overlapc.runtime.streams import communication_stream, resident_ctas, run_signaled

CARVED = (8, 16)
"""SMs left to a collective."""
PARTS = (2, 4, 8)
"""Numbers of equal bands that are tried; a planner's cut would be finer."""
SPEED_SHARE = 0.4
"""Of the time, for the GEMM alone; the rest is for overlap."""
POLLS = 20_000_000


@dataclass(frozen=True)
class Shape:
    """One rank's GEMM of a tensor-parallel layer."""

    name: str
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.name} {self.m}x{self.n}x{self.k}"


SHAPES = (
    Shape("Llama-3 70B down TP8", 8192, 8192, 3584),
    Shape("Llama-3 70B o TP8", 8192, 8192, 1024),
    Shape("Llama-3 8B down TP2", 8192, 4096, 7168),
    Shape("Llama-3 8B o TP2", 4096, 4096, 2048),
    Shape("Llama-3 70B down TP8", 2048, 8192, 3584),
    Shape("Llama-3 70B down TP4", 16384, 8192, 7168),
)
LIBRARY, LIBRARY_AGAIN = "torch.mm", "torch.mm again"
SERIAL, SERIAL_AGAIN = "serial", "serial again"
BOUND = "bound"


def run(deadline: Deadline, report: Callable[[str], None]) -> dict[str, Any]:
    """All rows, as JSON; RuntimeError where a kernel computes something else than it should."""
    checked = check(report)
    speed_ends = Deadline.after(deadline.left() * SPEED_SHARE)
    speed = [
        _reported(report, speed_row(shape, speed_ends.share(len(SHAPES) - index)))
        for index, shape in enumerate(SHAPES)
    ]
    pairs = [(shape, link) for shape in SHAPES for link in (nvlink_like(16), pcie_like(8))]
    overlap = [
        _reported(report, overlap_row(shape, link, deadline.share(len(pairs) - index)))
        for index, (shape, link) in enumerate(pairs)
    ]
    return {"checked": checked, "speed": speed, "overlap over an emulated link": overlap}


def check(report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every kind of kernel against float64: random values, poisoned output, counters."""
    rows = []
    for spec in checked_specs(_architecture()):
        for m, n, k in ((1000, 776, 520), (2048, 1024, 512)):
            error = checked_error(replace(spec, even_k=k % spec.block_k == 0), m, n, k)
            rows.append(
                _reported(report, {"spec": str(spec), "m": m, "n": n, "k": k, "error": error})
            )
            if not error <= 1:
                raise RuntimeError(f"wrong result, {error:.3g} of what roundings explain: {spec}")
    return rows


def checked_specs(architecture: str) -> list[GemmSpec]:
    """One spec of every kind that the measurements use, and the rarer ones."""
    tile = tiles_for(architecture, "bfloat16")[0]
    half = GemmSpec("bfloat16", "bfloat16", **asdict(replace(tile, stages=min(tile.stages, 3))))
    roomy = replace(half, block_n=128)
    return [
        half,
        replace(half, dtype="float16", out="float16", bias=True),
        half.without_signals(),
        replace(roomy, b="row"),
        replace(roomy, a="strided", b="strided"),
        GemmSpec("float32", "float32", **asdict(tiles_for(architecture, "float32")[0])),
    ]


def checked_error(spec: GemmSpec, m: int, n: int, k: int) -> float:
    """The error of one run over what is allowed; infinite where a counter is wrong."""
    a = random_operand(spec.a, m, k, spec.dtype, "cuda")
    b = random_operand(spec.b, k, n, spec.dtype, "cuda")
    bias = random_operand("row", 1, n, spec.dtype, "cuda")[0] if spec.bias else None
    c = torch.full((m, n), torch.nan, dtype=getattr(torch, spec.out), device="cuda")
    kernel = build(spec)
    bands = equal_bands(spec, m, 3)
    signals = Signals.zeroed(bands, kernel.tiles_n(n), c.device)
    kernel(a, b, c, ctas=100, bias=bias, bands=signals.bands, counters=signals.counters)
    counted = signals.counters[:, 0].tolist() == list(signals.targets)
    error = error_over_bound(spec, a, b, bias, c)
    return error if counted or not spec.signals else float("inf")


def speed_row(shape: Shape, deadline: Deadline) -> dict[str, Any]:
    """Our GEMM against the library's, at all SMs and with some left out; the cost of signals."""
    problem = _Operands(shape)
    library = _library(problem)
    candidates: dict[str, Callable[[], object]] = {LIBRARY: library, LIBRARY_AGAIN: library}
    full = resident_ctas(problem.device, 0)
    silent = build(problem.spec.without_signals())
    candidates["ours, no signals"] = problem.gemm(silent, full, parts=1)
    for parts in (1, 8):
        candidates[f"ours, {parts} bands"] = problem.gemm(problem.kernel, full, parts)
    for carved in CARVED:
        candidates[f"ours, {carved} SMs left"] = problem.gemm(problem.kernel, full - carved, 8)
        candidates[f"{LIBRARY}, {carved} SMs left"] = carved_out(library, carved)
    samples = measure_on_device(candidates, deadline, seed=shape.m + shape.k)
    return {"shape": str(shape), "spec": str(problem.spec)} | against(samples, LIBRARY)


def overlap_row(shape: Shape, link: EmulatedLink, deadline: Deadline) -> dict[str, Any]:
    """GEMM and EMULATED all-reduce: serial, two parts, signaled, and the measured bound."""
    problem = _Operands(shape)
    received = torch.empty(shape.m, shape.n, dtype=torch.bfloat16, device=problem.device)
    whole = problem.c
    stream = communication_stream(problem.device, link.name)

    def all_reduce(band: torch.Tensor) -> None:
        offset = int(band.storage_offset()) // shape.n
        link.all_reduce(band, received[offset : offset + band.shape[0]])

    def serial() -> None:
        torch.mm(problem.a, problem.b, out=whole)
        all_reduce(whole)

    def two_parts() -> None:
        for rows in equal_bands(problem.spec, shape.m, 2).slices:
            torch.mm(problem.a[rows], problem.b, out=whole[rows])
            _on(stream, lambda rows=rows: all_reduce(whole[rows]))
        torch.cuda.current_stream().wait_stream(stream)

    def signaled(parts: int, max_polls: int = 0) -> torch.Tensor:
        rows = equal_bands(problem.spec, shape.m, parts).rows
        return run_signaled(
            problem.kernel, problem.a, problem.b, None, rows, all_reduce, link.ctas,
            group=link.name, max_polls=max_polls,
        )  # fmt: skip

    def unordered(parts: int) -> Callable[[], None]:
        gemm = problem.gemm(
            problem.kernel, resident_ctas(problem.device, link.ctas), parts, out=problem.other
        )

        def run() -> None:
            stream.wait_stream(torch.cuda.current_stream())
            gemm()
            with torch.cuda.stream(stream):
                for rows in equal_bands(problem.spec, shape.m, parts).slices:
                    all_reduce(whole[rows])
            torch.cuda.current_stream().wait_stream(stream)

        return run

    check_overlap(signaled, received)
    candidates: dict[str, Callable[[], object]] = {SERIAL: serial, SERIAL_AGAIN: serial}
    candidates |= {"GEMM alone": _library(problem), "collective alone": lambda: all_reduce(whole)}
    candidates["two parts, torch.mm"] = two_parts
    for parts in PARTS:
        candidates[f"signaled, {parts} bands"] = lambda parts=parts: signaled(parts)
        candidates[f"{BOUND}, {parts} bands"] = unordered(parts)
    samples = measure_on_device(candidates, deadline, seed=shape.m + link.ranks)
    row = {"shape": str(shape), "emulated link": link.name, "SMs of the link": link.ctas}
    row["nominal collective ms"] = 1e3 * link.seconds(whole.numel() * whole.element_size())
    return row | against(samples, SERIAL) | shares_of_bound(samples)


def check_overlap(signaled: Callable[[int, int], torch.Tensor], received: torch.Tensor) -> None:
    """RuntimeError unless every band was whole when its emulated collective read it."""
    for parts in (1, *PARTS, *PARTS):
        received.fill_(torch.nan)
        out = signaled(parts, POLLS)
        if not torch.equal(out, received):
            raise RuntimeError(f"a band was sent before it was whole, with {parts} bands")


def against(samples: Samples, base: str) -> dict[str, Any]:
    """Medians in milliseconds, and the paired speedups over ``base``, of every candidate."""
    ratios = {name: samples.ratio(base, name) for name in samples.seconds}
    return {
        "rounds": samples.rounds,
        "ms": {name: 1e3 * samples.median(name) for name in samples.seconds},
        f"speedup over {base}": {
            name: [ratio.median, ratio.low, ratio.high] for name, ratio in ratios.items()
        },
    }


def shares_of_bound(samples: Samples) -> dict[str, Any]:
    """What every signaled run reached of the bound with the same bands."""
    shares = {
        f"{parts} bands": samples.ratio(f"{BOUND}, {parts} bands", f"signaled, {parts} bands")
        for parts in PARTS
    }
    return {"share of bound": {name: share.median for name, share in shares.items()}}


def equal_bands(spec: GemmSpec, m: int, parts: int) -> Bands:
    """At most ``parts`` bands of as equal a height as whole tile rows allow."""
    tiles = -(-m // spec.block_m)
    parts = min(parts, tiles)
    ends = [min(tiles * (part + 1) // parts * spec.block_m, m) for part in range(parts)]
    return Bands.of([end - start for start, end in zip([0, *ends], ends, strict=False)],
                    spec.block_m)  # fmt: skip


def carved_out(run: Callable[[], object], sms: int) -> Callable[[], object]:
    """The run with the library told to leave SMs out; a private setting of torch (cuBLASLt obeys).

    Where a release lacks it, the library runs on all SMs, and the row shows no difference.
    """
    carve = getattr(torch._C, "_set_sm_carveout_experimental", None)

    def carved() -> None:
        if carve is not None:
            carve(sms)
        try:
            run()
        finally:
            if carve is not None:
                carve(None)

    return carved


class _Operands:
    """Random operands of one shape, the kernel for them, and places for results."""

    def __init__(self, shape: Shape) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.a = random_operand("row", shape.m, shape.k, "bfloat16", "cuda")
        self.b = random_operand("col", shape.k, shape.n, "bfloat16", "cuda")
        self.c = torch.empty(shape.m, shape.n, dtype=torch.bfloat16, device=self.device)
        self.other = torch.empty_like(self.c)
        self.spec = spec_for(self.a, self.b, architecture=_architecture())
        self.kernel = build(self.spec)

    def gemm(
        self, kernel: Kernel, ctas: int, parts: int, out: torch.Tensor | None = None
    ) -> Callable[[], None]:
        """One launch of the GEMM alone, with zeroed counters as an op has them."""
        (m, n), c = self.c.shape, self.c if out is None else out
        bands = equal_bands(self.spec, m, parts)

        def run() -> None:
            signals = None
            if kernel.spec.signals:
                signals = Signals.zeroed(bands, kernel.tiles_n(n), self.device)
            kernel(self.a, self.b, c, ctas=ctas, bands=signals and signals.bands,
                   counters=signals and signals.counters)  # fmt: skip

        return run


def _library(problem: _Operands) -> Callable[[], object]:
    return lambda: torch.mm(problem.a, problem.b, out=problem.c)


def _on(stream: torch.cuda.Stream, run: Callable[[], None]) -> None:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()


def _architecture() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _reported(report: Callable[[str], None], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, after a line of progress."""
    report(", ".join(f"{name} {value}" for name, value in row.items() if name != "rounds"))
    return dict(row)
