"""Targets whose answer is known: on a slow link cutting pays, on a fast one it never does."""

from __future__ import annotations

from dataclasses import replace

from overlapc.planning.curve import Curve
from overlapc.planning.problem import COLLECTIVES
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target

DTYPES = ("float32", "float64", "bfloat16", "float16", "float8_e4m3fn")


def machine(name: str, bytes_per_second: float, *, world_sizes: tuple[int, ...] = (2, 4)) -> Target:
    """A processor of 1 GFLOP/s whose collectives have no latency and the given bandwidth."""
    curve = Curve(((1024, 1024 / bytes_per_second), (2**24, 2**24 / bytes_per_second)))
    return Target(
        name=name,
        device="cpu",
        backend="gloo",
        is_measured=True,
        gemm=tuple(GemmRates(dtype, 1e9, 0.0) for dtype in DTYPES),
        links=tuple(
            Link(collective, size, curve, curve)
            for collective in COLLECTIVES
            for size in world_sizes
        ),
        compute_slowdown=1.0,
        link_slowdown=1.0,
    )


def with_halves(target: Target) -> Target:
    """The same, but a reduce-scatter or an all-gather takes half as long as an all-reduce."""
    links = []
    for link in target.links:
        points = link.alone.points
        if link.collective in ("reduce_scatter", "all_gather"):
            points = tuple((size, seconds / 2) for size, seconds in points)
        links.append(replace(link, alone=Curve(points), queued=Curve(points)))
    return replace(target, name=f"{target.name}-with-halves", links=tuple(links))


SLOW_LINK = machine("slow-link", 4e7)
SLOWER_LINK = with_halves(machine("slower-link", 1.5e7))
"""An all-reduce takes longer than the GEMM before it."""
FAST_LINK = machine("fast-link", 1e15)
