"""What threads of a warp do together: exchange numbers, load matrices, and multiply them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulated.values import FACTOR_BYTES, Bits, factors_of

LANES = 32
ROW_BYTES = 16
"""Of a matrix of eight rows that ``ldmatrix`` loads."""


def shuffled(how: str, bits: Bits, by: Any, clamp: Any, active: Any) -> tuple[Bits, Any]:
    """``shfl.sync``: what each thread gets, and whether it is of another that takes part."""
    lane = np.arange(len(bits)) % LANES
    base = np.arange(len(bits)) - lane
    by, clamp = by.astype(np.int64), clamp.astype(np.int64)
    segment = clamp >> 8 & 31
    last, first = (lane & segment) | (clamp & 31 & ~segment), lane & segment
    at = {
        "bfly": lane ^ by, "up": lane - by, "down": lane + by,
        "idx": first | (by & ~segment & 31),
    }[how]  # fmt: skip
    inside = at >= last if how == "up" else at <= last
    source = base + np.where(inside, at, lane)
    if not active[source][active].all():
        raise AssertionError("a thread takes from one that does not take part")
    return bits[source], inside


def matrix_rows(rows: Any, count: int, *, transposed: bool) -> list[Bits]:
    """``ldmatrix``: each lane's two numbers of 16 bits of each matrix, of the 16 bytes whose
    addresses lanes 8 i to 8 i + 7 give of matrix i. ``rows`` are those, ``[threads, 16]``."""
    halves = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, LANES, 8)
    found = []
    for matrix in range(count):
        own = halves[:, 8 * matrix : 8 * matrix + 8]
        own = own.transpose(0, 2, 1) if transposed else own
        pairs = np.ascontiguousarray(own).reshape(-1, LANES, 2)
        found.append(np.ascontiguousarray(pairs).view(np.uint32).reshape(-1))
    return found


def matrix_row_lanes(count: int, threads: int) -> Any:
    """Which lanes give an address to ``ldmatrix``."""
    return np.arange(threads) % LANES < 8 * count


def products(shape: str, kind: str, a: list[Bits], b: list[Bits], sums: list[Any]) -> list[Any]:
    """``mma.sync`` of every warp: sums[16, 8] + a[16, k] @ b[k, 8], of float32 sums."""
    depth = int(shape.partition("k")[2])
    size = FACTOR_BYTES[kind]
    each = 4 // size
    half = ROW_BYTES // size
    warps = len(sums[0]) // LANES
    lane = np.arange(warps * LANES)
    warp, group, thread = lane // LANES, lane % LANES // 4, lane % 4
    left, right = np.zeros((warps, 16, depth)), np.zeros((warps, depth, 8))
    for index, bits in enumerate(a):
        for part, numbers in enumerate(factors_of(bits, kind)):
            column = each * thread + part + half * (index // 2)
            left[warp, group + 8 * (index % 2), column] = numbers
    for index, bits in enumerate(b):
        for part, numbers in enumerate(factors_of(bits, kind)):
            right[warp, each * thread + part + half * index, group] = numbers
    found = left @ right
    return [
        (found[warp, group + 8 * (index // 2), 2 * thread + index % 2] + total).astype(np.float32)
        for index, total in enumerate(sums)
    ]
