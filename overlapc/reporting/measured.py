"""What a calibration measured, as a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.schedule import format_seconds
from overlapc.planning.target import Target

_UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def describe_target(target: Target) -> str:
    """GEMM rates, each link's curve and the contention beside it, one line each."""
    return "\n".join(f"  {line}" for line in _lines(target))


def _lines(target: Target) -> Iterator[str]:
    for rates in target.gemm:
        scaled = " with one scale a tensor" if rates.scales else ""
        yield f"GEMM of {rates.dtype}{scaled}: {_rates(rates)}"
    for link in target.links:
        c = link.compute_slowdown or target.compute_slowdown
        d = link.link_slowdown or target.link_slowdown
        yield f"{link.collective} over {link.world_size} ranks: {_curve(link)}"
        beside = f"compute takes {c:.2f} times as long and this collective {d:.2f} times"
        yield f"  side by side, {beside}"
    if not target.links:
        yield "no link: the group has one rank, or its backend sends none of the collectives"


def _rates(rates: GemmRates) -> str:
    parts = [
        f"{_scaled(rates.flops_per_second)}FLOP/s",
        f"{format_seconds(rates.launch_seconds)} a call",
    ]
    for what, rate in (
        ("weights packed at", rates.pack_bytes_per_second),
        ("operands read at", rates.memory_bytes_per_second),
        ("pointwise work at", rates.pointwise_bytes_per_second),
    ):
        if rate is not None:
            parts.append(f"{what} {_scaled(rate)}B/s")
    return ", ".join(parts)


def _curve(link: Link) -> str:
    points = link.alone.points
    (small, first), (large, last) = points[0], points[-1]
    sizes = f"{len(points)} sizes, {_scaled(small)}B in {format_seconds(first)}"
    return f"{sizes} to {_scaled(large)}B in {format_seconds(last)}, {_scaled(large / last)}B/s"


def _scaled(value: float) -> str:
    """Three significant digits and the unit's prefix, such as ``1.25 G``."""
    for prefix, scale in _UNITS:
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "
