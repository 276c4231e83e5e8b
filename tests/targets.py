"""Targets whose answer is known: on a slow link cutting pays, on a fast one it never does."""

from __future__ import annotations

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


SLOW_LINK = machine("slow-link", 4e7)
FAST_LINK = machine("fast-link", 1e15)
