"""The GEMMs whose collectives are overlapped on GPUs: tensor-parallel layers of three models."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS = {
    "Llama-3 70B down": (8192, 28672),
    "Llama-3 8B o": (4096, 4096),
    "Qwen3-32B down": (5120, 25600),
    "Llama-3 70B o": (8192, 8192),
    "Llama-3 8B down": (4096, 14336),
    "Qwen3-32B o": (5120, 8192),
}
"""Columns of the result, and the contracted size of all ranks together."""


@dataclass(frozen=True)
class Shape:
    """One rank's GEMM of a tensor-parallel layer."""

    layer: str
    ranks: int
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.layer} TP{self.ranks}, {self.m}x{self.n}x{self.k}"


SHAPES = tuple(
    Shape(layer, ranks, m, n, k // ranks)
    for m in (4096, 16384, 1024, 8192, 2048)
    for ranks in (8, 2, 4)
    for layer, (n, k) in LAYERS.items()
)
"""The most telling ones first: a run that ends early has measured those."""
