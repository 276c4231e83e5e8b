"""The signaled GEMM on one GPU: right, then fast, then overlapped with an EMULATED link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.asked import COMPARED
from benchmarks.gpu.device import DTYPE
from benchmarks.gpu.gemm import checks, links, nccl, rates
from benchmarks.gpu.gemm.emulated_link import LINKS
from benchmarks.gpu.gemm.published import compared
from benchmarks.gpu.gemm.shapes import SHAPES, Shape
from benchmarks.gpu.gemm.summary import summary
from benchmarks.gpu.worker import Row
from overlapc.planning.records import to_value
from overlapc.planning.target import Target
from overlapc.planning.tiles import share_of, tiles_for

CHECKED, STAGED = "Kernels against float64", "Staged paths against float64, over an EMULATED link"
SIGNALS, RATES = "Signals", "Rates of kernels, by tile"
LINKED = "EMULATED links, measured"
FOR_TARGET = "For a target file"
NCCL = "NCCL on one GPU"
SPEED = "The GEMM alone"
OVERLAP = "Overlap over an EMULATED link"
TABLES = (CHECKED, STAGED, SIGNALS, RATES, LINKED, NCCL, SPEED, OVERLAP)
"""Of what is measured, in the order of the page."""

NVLINK, PCIE = LINKS
MORE = (
    ("reduce_scatter", NVLINK, ""),
    ("all_reduce", PCIE, ""),
    ("all_to_all", NVLINK, ""),
    ("reduce_scatter", PCIE, ""),
    ("all_reduce", NVLINK, "bias"),
    ("all_to_all", PCIE, ""),
    ("all_reduce", NVLINK, "gated"),
)
"""What is overlapped for one shape after the other, beside an all-reduce for each."""

Done = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows that have been measured, by table."""


def rows(done: Done, shipped: Target, shapes: Sequence[Shape] = SHAPES) -> Iterator[Row]:
    """What to measure, the most telling rows first; later ones use what ``done`` then holds."""
    yield from check_rows(shipped.architecture)
    for by in ("driver", "kernel"):
        yield Row(SIGNALS, by, "benchmarks.gpu.gemm.rates.signals", {"by": by})
    for number, tile in enumerate(tiles_for(shipped.architecture, DTYPE)):
        yield Row(
            RATES, str(tile), "benchmarks.gpu.gemm.rates.tile_rates", {"number": number}, seconds=2
        )
    for link in LINKS:
        for ranks in sorted({shape.ranks for shape in shapes}):
            name = f"EMULATED {link} of {ranks} ranks"
            yield Row(
                LINKED, name, "benchmarks.gpu.gemm.links.measure", {"link": link, "ranks": ranks}
            )
    for kind in nccl.KINDS:
        yield Row(NCCL, f"1 rank, {kind}", "benchmarks.gpu.gemm.nccl.one_rank", {"kind": kind})
    yield Row(
        NCCL, "2 ranks", "benchmarks.gpu.gemm.nccl.two_ranks", limit=nccl.TIMEOUT_SECONDS + 10
    )
    measured = known_target(done, shipped)
    for number, shape in enumerate(shapes):
        given = {"shape": shape, "target": measured}
        yield Row(SPEED, str(shape), "benchmarks.gpu.gemm.speed.speed", given, seconds=0.7)
        for chain in (("all_reduce", NVLINK, ""), MORE[number % len(MORE)]):
            yield overlapped(shape, measured, done, *chain)


def check_rows(architecture: str) -> Iterator[Row]:
    """Every kernel and every staged path."""
    for number, spec in enumerate(checks.kernels(architecture)):
        yield Row(CHECKED, str(spec), "benchmarks.gpu.gemm.checks.kernel", {"number": number})
    for collective, by_columns, epilogue in checks.PATHS:
        name = checks.name_of(collective, by_columns, epilogue)
        given = {"collective": collective, "by_columns": by_columns, "epilogue": epilogue}
        yield Row(STAGED, name, "benchmarks.gpu.gemm.checks.staged", given)


def overlapped(
    shape: Shape, target: Target, done: Done, collective: str, link: str, epilogue: str
) -> Row:
    """One chain over one link."""
    try:
        linked = links.with_links(target, done.get(LINKED, ()), link, shape.ranks)
    except ValueError:  # of times that no target may have
        linked = links.with_links(target, (), link, shape.ranks)
    given = {"shape": shape, "collective": collective, "link": link, "target": linked}
    given["epilogue"] = epilogue
    name = f"{shape}, {collective}, {link}"
    return Row(OVERLAP, name, "benchmarks.gpu.gemm.overlap.overlap", given)


def numbers(done: Done, shipped: Target) -> dict[str, float]:
    """What this run knows of the device's target."""
    return rates.numbers_of(done.get(RATES, ()), done.get(SIGNALS, ()), shipped)


def known_target(done: Done, shipped: Target) -> Target:
    """The shipped one with what was measured, unless that is nothing a target can have."""
    try:
        return rates.measured_target(shipped, numbers(done, shipped))
    except ValueError:
        return shipped


def for_target(done: Done, shipped: Target) -> list[dict[str, Any]]:
    """The fields of a target file that this run has measured, and shares of tiles."""
    gemm = next(its for its in shipped.gemm if its.dtype == DTYPE)
    shares = {
        f"share of {tile}": share_of(tile, shipped.architecture, DTYPE)
        for tile in tiles_for(shipped.architecture, DTYPE)
    }
    known = {**to_value(shipped), **to_value(gemm), **shares}
    return [
        {"row": name, "measured": value, "shipped": known[name]}
        for name, value in numbers(done, shipped).items()
    ]


def tables(done: Done, shipped: Target) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What a page shows, the conclusions first."""
    checked = [*done.get(CHECKED, ()), *done.get(STAGED, ())]
    return {
        "Summary": summary(checked, done.get(SPEED, ()), done.get(OVERLAP, ())),
        COMPARED: compared(done.get(OVERLAP, ())),
        FOR_TARGET: for_target(done, shipped),
        **{name: done.get(name, []) for name in TABLES},
    }
