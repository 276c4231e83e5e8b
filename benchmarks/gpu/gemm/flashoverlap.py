"""What FlashOverlap publishes (arXiv 2504.19519 v1, Fig. 9 and 10), as data, and on which ratios.

Speed-ups are over a GEMM and then the collective. Those of `MEANS` are read off bars (by 0.01 to
0.02), those of `HEATMAPS` are printed in its cells. Which collective, and how many GPUs, a heat map
is of is not known to us. Shapes of `MEANS` are those that its artifact measures (branch ``ae``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from overlapc.planning.cost import Costs
from overlapc.planning.problem import Problem
from overlapc.planning.target import Target

Sizes = tuple[int, int, int]
"""m, n and k on each rank."""

A800_SHAPES: tuple[Sizes, ...] = tuple(
    (m, n, k) for m, n in ((8192, 8192), (16384, 8192), (16384, 16384)) for k in (2048, 4096, 8192)
)
"""Of its all-reduces and reduce-scatters there."""
RTX_SHAPES: tuple[Sizes, ...] = tuple(
    (m, 8192, k) for m in (2048, 3072, 4096, 8192) for k in (8192, 16384)
)
"""The same on RTX 4090s."""
RTX_EXCHANGES: tuple[Sizes, ...] = tuple(
    (m, 8192, k) for m in (512, 1024, 2048, 2560) for k in (8192, 16384)
)
"""Of its all-to-alls there."""

TARGETS = {"A800": "a100-nvlink", "RTX 4090": "rtx4090-pcie"}
"""Shipped targets that stand for its machines. Their links are the curves that it publishes, of
four GPUs (an A800 has the SMs of an A100, and links of two thirds the rate)."""
FLOAT16_SUMS = {"A800": 1.0, "RTX 4090": 2.0}
"""How much faster than the target's rate its GEMMs can be: they add up in float16, for which the
datasheet of the RTX 4090 has twice the rate (330 and 165 TFLOP/s) and that of the A800 the same."""


@dataclass(frozen=True)
class Speedup:
    """A mean over shapes, and the least and the most."""

    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class Mean:
    """One bar: FlashOverlap on some shapes, beside a decomposition into two parts."""

    device: str
    collective: str
    ranks: int
    flashoverlap: Speedup
    two_parts: Speedup

    def __str__(self) -> str:
        return f"{self.ranks} {self.device}, {self.collective}"

    @property
    def shapes(self) -> tuple[Sizes, ...]:
        """On which it was measured."""
        if self.device == "A800":
            return A800_SHAPES
        return RTX_EXCHANGES if self.collective == "all_to_all" else RTX_SHAPES

    def problem(self, sizes: Sizes) -> Problem:
        """One of its shapes."""
        return Problem(*sizes, "float16", self.collective, self.ranks, order="gemm_first")

    @property
    def ratios(self) -> tuple[float, float]:
        """The least and the most compute to communication of its shapes. NOT published: of the
        target's rates, which are assumed or derived."""
        target = machine(self.device)
        found = [compute_to_communication(self.problem(its), target) for its in self.shapes]
        return min(found), max(found)


def compute_to_communication(problem: Problem, target: Target) -> float:
    """Seconds of the library's GEMM over those of the collective."""
    costs = Costs(problem, target)
    return costs.gemm(problem.m) / costs.plain(problem.m)


@cache
def machine(device: str) -> Target:
    """The target that stands for a machine of its, at the rate of its GEMMs."""
    target, faster = Target.load(TARGETS[device]), FLOAT16_SUMS[device]
    gemm = tuple(
        replace(rates, flops_per_second=faster * rates.flops_per_second)
        if rates.dtype == "bfloat16"
        else rates
        for rates in target.gemm
    )
    return replace(target, gemm=gemm)


MEANS = (
    Mean("A800", "all_reduce", 2, Speedup(1.115, 1.05, 1.20), Speedup(1.08, 1.04, 1.11)),
    Mean("A800", "all_reduce", 4, Speedup(1.17, 1.08, 1.275), Speedup(1.11, 1.04, 1.15)),
    Mean("A800", "all_reduce", 8, Speedup(1.175, 1.08, 1.30), Speedup(1.125, 1.06, 1.18)),
    Mean("A800", "reduce_scatter", 2, Speedup(1.065, 1.015, 1.10), Speedup(1.046, 1.005, 1.07)),
    Mean("A800", "reduce_scatter", 4, Speedup(1.08, 1.02, 1.14), Speedup(1.05, 1.01, 1.075)),
    Mean("A800", "reduce_scatter", 8, Speedup(1.085, 1.02, 1.13), Speedup(1.053, 0.93, 1.095)),
    Mean("RTX 4090", "all_reduce", 2, Speedup(1.32, 1.18, 1.51), Speedup(1.195, 1.13, 1.26)),
    Mean("RTX 4090", "all_reduce", 4, Speedup(1.23, 1.09, 1.40), Speedup(1.155, 0.98, 1.235)),
    Mean("RTX 4090", "all_reduce", 8, Speedup(1.21, 1.13, 1.33), Speedup(1.10, 1.02, 1.185)),
    Mean("RTX 4090", "reduce_scatter", 2, Speedup(1.35, 1.19, 1.46), Speedup(1.225, 1.165, 1.29)),
    Mean("RTX 4090", "reduce_scatter", 4, Speedup(1.35, 1.15, 1.54), Speedup(1.175, 0.94, 1.235)),
    Mean("RTX 4090", "reduce_scatter", 8, Speedup(1.24, 1.10, 1.49), Speedup(1.185, 1.115, 1.29)),
    Mean("RTX 4090", "all_to_all", 2, Speedup(1.33, 1.03, 1.48), Speedup(1.21, 1.065, 1.35)),
    Mean("RTX 4090", "all_to_all", 4, Speedup(1.375, 1.145, 1.65), Speedup(1.10, 0.92, 1.44)),
    Mean("RTX 4090", "all_to_all", 8, Speedup(1.185, 1.11, 1.25), Speedup(1.09, 0.95, 1.265)),
)
"""Fig. 9. The 1.65 of its abstract is the most of four RTX 4090 and an all-to-all."""

KI = MI = 1024
_RTX_CELLS = """
1.26 1.38 1.42 1.45 1.40 1.41 1.44
1.29 1.41 1.42 1.44 1.44 1.46 1.46
1.32 1.40 1.46 1.48 1.52 1.52 1.51
1.30 1.41 1.45 1.48 1.50 1.52 1.54
1.19 1.30 1.30 1.36 1.36 1.41 1.46
1.20 1.32 1.37 1.40 1.41 1.42 1.46
1.21 1.26 1.31 1.34 1.35 1.34 1.33
"""
_A800_CELLS = """
1.08 1.11 1.10 1.10 1.12 1.19 1.17
1.12 1.12 1.17 1.16 1.18 1.21 1.19
1.14 1.17 1.20 1.21 1.22 1.22 1.25
1.15 1.18 1.20 1.22 1.22 1.22 1.22
1.20 1.24 1.19 1.20 1.23 1.27 1.28
1.14 1.26 1.29 1.32 1.33 1.36 1.35
1.13 1.23 1.29 1.33 1.31 1.34 1.35
"""
HEATMAPS = {
    "RTX 4090": ((16, 14, 12, 10, 8, 6, 4), (16, 24, 32, 40, 48, 56, 64), _RTX_CELLS),
    "A800": ((8, 7, 6, 5, 4, 3, 2), (64, 96, 128, 160, 192, 224, 256), _A800_CELLS),
}
"""Fig. 10, by device: k by rows in units of 1024, m * n by columns in 1024 squared, speed-ups."""
HEATMAP_MEANS = {"RTX 4090": 1.39, "A800": 1.21}
"""As the figure prints them."""


def cells(device: str) -> Iterator[tuple[int, int, float]]:
    """k, elements of the result, and the speed-up of each cell of a heat map."""
    depths, sizes, text = HEATMAPS[device]
    for k, line in zip(depths, text.split("\n")[1:-1], strict=True):
        for size, speedup in zip(sizes, line.split(), strict=True):
            yield k * KI, size * MI * MI, float(speedup)


FARTHEST = 2.0
"""How many times a ratio may lie outside of all published ones to be compared at all: chosen."""


def alike(collective: str, ratio: float) -> list[Mean]:
    """Published means of the collective on shapes of such a ratio; else those of the nearest, none
    where they are farther off than `FARTHEST`."""
    its = [mean for mean in MEANS if mean.collective == collective]
    if not (its and 0 < ratio < math.inf):
        return []
    apart = [max(low / ratio, ratio / high, 1.0) for low, high in (mean.ratios for mean in its)]
    nearest = min(apart)
    if nearest > FARTHEST:
        return []
    return [mean for mean, far in zip(its, apart, strict=True) if far == nearest]
