"""Tensors as the TMA unit reads them, and what tells that bytes have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.emulated.matrix_unit import swizzled
from tests.emulated.memory import BadAccess

SPANS = (16, 32, 64, 128)
"""Bytes of a row that lie together, by how a map is swizzled."""


@dataclass(frozen=True)
class TensorMap:
    """What a driver makes of a descriptor; sizes and strides outermost first."""

    content: Any
    """A tensor of the host, as bytes of its numbers, ``[*shape, size]``."""
    box: tuple[int, ...]
    span: int
    padding: int
    """The byte that is read beyond the tensor."""

    def load(self, coordinates: Sequence[int]) -> Any:
        """The bytes of the box that begins there, ``[rows, bytes of a row]``."""
        size = self.content.shape[-1]
        found = np.full((*self.box, size), self.padding, np.uint8)
        inside, taken = [], []
        for begin, count, most in zip(coordinates, self.box, self.content.shape, strict=False):
            low, high = max(begin, 0), min(begin + count, most)
            if low >= high:
                return found.reshape(-1, self.box[-1] * size)
            inside.append(slice(low, high))
            taken.append(slice(low - begin, high - begin))
        found[tuple(taken)] = self.content[tuple(inside)]
        return found.reshape(-1, self.box[-1] * size)

    def places(self, start: int) -> Any:
        """Where each byte of a box goes that begins there in shared memory."""
        width = self.box[-1] * self.content.shape[-1]
        if self.span > 16 and width > self.span:
            raise BadAccess("a box is wider than its swizzle")
        rows = int(np.prod(self.box[:-1]))
        return swizzled(start + np.arange(rows * width).reshape(rows, width), self.span)


@dataclass
class Arrivals:
    """A barrier in shared memory that counts arrivals, and bytes of copies."""

    count: int
    phase: int = 0
    pending: int = field(init=False)
    bytes: int = 0
    copies: list[tuple[TensorMap, tuple[int, ...], Any]] = field(default_factory=list)
    """On their way: map, coordinates, and where bytes go."""

    def __post_init__(self) -> None:
        self.pending = self.count

    def arrive(self, expected: int = 0) -> None:
        self.bytes += expected
        self.pending -= 1
        if self.pending < 0:
            raise BadAccess("more arrive at a barrier than it counts")
        self.advance()

    def take(self, count: int) -> None:
        self.bytes -= count
        self.advance()

    def advance(self) -> None:
        """To the next phase where all is there."""
        if not self.pending and not self.bytes:
            self.phase, self.pending = self.phase + 1, self.count

    def is_over(self, parity: int) -> bool:
        """Whether the last phase of that parity is complete."""
        return self.phase & 1 != parity
