"""The layers that are measured, and how many of them make a call's weights cold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SHAPES = {"qkv": (1536, 1024), "o": (1024, 1024), "gate": (2816, 1024), "down": (1024, 2816),
          "head": (32000, 1024)}  # fmt: skip
"""Columns and contracted size of the layers of a small Llama, and of its vocabulary."""
LLAMA = {"qkv": (6144, 4096), "o": (4096, 4096), "gate": (14336, 4096), "down": (4096, 14336)}
"""Of Llama-3 8B."""
COLD_BYTES = 96 << 20
"""Of weights of one call, at least; more where the last cache is larger."""
MOST_WEIGHTS = 64


def last_cache() -> int:
    """Bytes of the largest cache of this processor; zero where Linux does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().removesuffix("K\n")) << 10 for size in sizes), default=0)


@dataclass(frozen=True)
class Case:
    """One layer."""

    name: str
    n: int
    k: int
    dtype: torch.dtype
    silu: bool = False
    """Whether a bias and SiLU follow the product."""

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}, {self.n}x{self.k} {dtype}{', then silu' if self.silu else ''}"

    @property
    def weights(self) -> int:
        """How many a call reads."""
        return min(MOST_WEIGHTS, max(2, math.ceil(max(COLD_BYTES, last_cache()) / self.bytes)))

    @property
    def bytes(self) -> int:
        """Of one weight."""
        return self.n * self.k * self.dtype.itemsize

    def x(self, rows: int) -> torch.Tensor:
        """So many random rows."""
        return torch.randn(rows, self.k).to(self.dtype)


class Layers(nn.Module):
    """Layers that are alike but for their weights, of the same rows.

    One graph calls all of them, as a model's does, so that what a call of a graph costs by itself
    is no part of what is compared.
    """

    def __init__(self, case: Case, count: int) -> None:
        super().__init__()
        made = [nn.Linear(case.k, case.n, bias=case.silu, dtype=case.dtype) for _ in range(count)]
        self.layers, self.after = nn.ModuleList(made), F.silu if case.silu else nn.Identity()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The result of each."""
        return [self.after(layer(x)) for layer in self.layers]


def cases(shapes: Mapping[str, tuple[int, int]], *, silu: bool = False) -> Iterator[Case]:
    """Every layer in both dtypes."""
    for dtype in (torch.float32, torch.bfloat16):
        for name, (n, k) in shapes.items():
            yield Case(name, n, k, dtype, silu)
