"""Products that a warpgroup of sm_90 starts on matrices in shared memory (``wgmma``).

How a descriptor says where a matrix lies is that of the PTX ISA, "asynchronous warpgroup level
matrix instructions"; offsets are in bytes here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.emulated.values import FACTOR_BYTES, Bits, factors_of

UNIT = 16
"""Bytes that lie together whatever the swizzle."""
GROUP = 128
"""Threads of a warpgroup."""
SPANS = (UNIT, 128, 64, 32)
"""Bytes of a row of a matrix that lie together, by a descriptor's swizzle."""


@dataclass(frozen=True)
class Place:
    """Where a matrix lies, as a descriptor of 64 bits says."""

    start: int
    leading: int
    stride: int
    span: int

    @classmethod
    def of(cls, bits: int) -> Place:
        """Read a descriptor."""
        assert not bits >> 49 & 7, "a base offset"
        encoded = (bits & 0x3FFF, bits >> 16 & 0x3FFF, bits >> 32 & 0x3FFF)
        return cls(*(UNIT * each for each in encoded), SPANS[bits >> 62 & 3])

    def bytes_at(self, rows: int, columns: int, size: int, *, is_transposed: bool) -> Any:
        """Where each number of ``[rows, columns]`` begins, columns being multiplied; transposed:
        rows follow one another in memory, not columns."""
        row, column = np.arange(rows)[:, None], np.arange(columns)[None]
        if is_transposed:
            row, column = column, row
            many, few = column // (self.span // size), column % (self.span // size)
            # With no swizzle the two distances change their places.
            steps = (self.leading, self.stride) if self.span > UNIT else (self.stride, self.leading)
            linear = many * steps[0] + few * size + row % 8 * self.span + row // 8 * steps[1]
            found = self.start + linear
            return swizzled(found, self.span)
        inner = column * size
        if self.span == UNIT:
            inner = inner // UNIT * self.leading + inner % UNIT
        return swizzled(
            self.start + inner + row % 8 * self.span + row // 8 * self.stride, self.span
        )


def swizzled(at: Any, span: int) -> Any:
    """Where bytes lie whose address in rows of ``span`` bytes is that: units of a row change their
    places by the row."""
    return at ^ (at >> 3 & span - UNIT)


def registers_of(a: list[Bits], kind: str, columns: int) -> Any:
    """A matrix that the threads of each warpgroup hold, ``[groups, 64, columns]``."""
    each, half = 4 // FACTOR_BYTES[kind], UNIT // FACTOR_BYTES[kind]
    thread = np.arange(len(a[0]))
    warp, lane = thread % GROUP // 32, thread % 32
    found = np.zeros((len(thread) // GROUP, 64, columns))
    for index, bits in enumerate(a):
        for part, numbers in enumerate(factors_of(bits, kind)):
            row = 16 * warp + lane // 4 + 8 * (index % 2)
            found[thread // GROUP, row, each * (lane % 4) + part + half * (index // 2)] = numbers
    return found


def result_of(product: Any, index: int) -> Any:
    """Number ``index`` that each thread holds of ``[groups, 64, columns]``."""
    thread = np.arange(len(product) * GROUP)
    warp, lane = thread % GROUP // 32, thread % 32
    row = 16 * warp + lane // 4 + 8 * (index // 2 % 2)
    return product[thread // GROUP, row, 8 * (index // 4) + 2 * (lane % 4) + index % 2]
