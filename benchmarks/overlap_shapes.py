"""The GEMMs that are measured: row-parallel projections of named models, and extremes."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = "loopback"
"""In place of a rate: no link is made, and the ranks talk through this machine's memory."""


@dataclass(frozen=True)
class Shape:
    """One rank's GEMM ``C[m, n] = A[m, k] @ W[n, k].T``; all ranks' C are then summed."""

    m: int
    n: int
    k: int
    origin: str
    """The model and projection it is of and its share of k, or what it is extreme in."""

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True)
class Pair:
    """One row of the table."""

    shape: Shape
    rate: str
    """Of the link, as ``tc`` spells it, or ``LOOPBACK``."""
    is_extreme: bool
    """Overlap is not expected to pay here; counted in "never slower", not in the share of bound."""


SQUARE = Shape(2048, 2048, 2048, "square")

MODELS = (
    SQUARE,
    Shape(1024, 2048, 4096, "Llama 3.2 1B down, 2 ranks, 1024 tokens"),
    Shape(512, 2048, 4096, "Llama 3.2 1B down, 2 ranks, 512 tokens"),
    Shape(2048, 1024, 1536, "Qwen3 0.6B down, 2 ranks, 2048 tokens"),
    Shape(2048, 1024, 1024, "Qwen3 0.6B o, 2 ranks, 2048 tokens"),
    Shape(1024, 2048, 2816, "TinyLlama 1.1B down, 2 ranks, 1024 tokens"),
    Shape(2048, 896, 2432, "Qwen2.5 0.5B down, 2 ranks, 2048 tokens"),
    Shape(1024, 1152, 3456, "Gemma 3 1B down, 2 ranks, 1024 tokens"),
    Shape(768, 1600, 3200, "GPT-2 XL c_proj, 2 ranks, 768 tokens"),
    Shape(512, 4096, 1792, "Llama 3.1 8B down, 8 ranks, 512 tokens"),
    Shape(512, 3584, 2368, "Qwen2.5 7B down, 8 ranks, 512 tokens"),
)
"""A rank of a large model has 1/8 of k, as on a node of eight devices; only two ranks exchange."""

EXTREMES = (
    Shape(64, 256, 256, "tiny"),
    Shape(16, 2048, 2048, "16 rows: a decode step"),
    Shape(64, 16384, 512, "very wide"),
    Shape(1024, 2048, 64, "small k: the collective dominates"),
)

RATES = ("300mbit", "1gbit")


def pairs(rates: tuple[str, ...] = RATES, *, quick: bool = False) -> list[Pair]:
    """All pairs of the table; ``quick`` leaves three models and two extremes at the last rate."""
    models, extremes = (MODELS[:3], EXTREMES[:2]) if quick else (MODELS, EXTREMES)
    found = []
    for rate in rates[-1:] if quick else rates:
        is_loopback = rate == LOOPBACK
        found += [Pair(shape, rate, is_loopback) for shape in models]
        found += [Pair(shape, rate, True) for shape in extremes]
    if LOOPBACK not in rates:
        found += [Pair(shape, LOOPBACK, True) for shape in (SQUARE, EXTREMES[1])]
    return found
