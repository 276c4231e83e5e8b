"""Bits of registers as numbers of a PTX type, and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Bits = NDArray[np.unsignedinteger]
"""One number of a thread each, unsigned, as wide as the register."""
Numbers = NDArray[np.generic]

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
PLAIN = {
    "pred": np.bool_,
    **{f"{letter}{8 * size}": kind for letter in "bu" for size, kind in UNSIGNED.items()},
    "s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
SMALL = {
    "bf16": (torch.bfloat16, np.uint16, torch.uint16),
    "e4m3": (torch.float8_e4m3fn, np.uint8, torch.uint8),
    "e5m2": (torch.float8_e5m2, np.uint8, torch.uint8),
}
"""Floats that NumPy has not; they are computed with as float32."""
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}

FACTOR_BYTES = {"tf32": 4, "bf16": 2, "f16": 2, "e4m3": 1, "e5m2": 1}
"""Of a number that matrix units multiply."""


def bytes_of(kind: str) -> int:
    """How many a number of a type has."""
    if kind.endswith("x2"):
        return 2 * bytes_of(kind[:-2])
    if kind in SMALL:
        return np.dtype(SMALL[kind][1]).itemsize
    return np.dtype(PLAIN[kind]).itemsize


def is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf", "e", "tf"))


def typed(bits: Bits, kind: str) -> Numbers:
    """The numbers that bits are; of a pair ``[2, ...]``, the low ones first."""
    if kind.endswith("x2"):
        half = 8 * bytes_of(kind[:-2])
        whole = widened(bits, bytes_of(kind))
        low, high = whole & whole.dtype.type((1 << half) - 1), whole >> whole.dtype.type(half)
        return np.stack([typed(each, kind[:-2]) for each in (low, high)])
    own = widened(bits, bytes_of(kind))
    if kind not in SMALL:
        return own.astype(np.bool_) if kind == "pred" else own.view(PLAIN[kind])
    dtype, _, stored = SMALL[kind]
    flat = torch.from_numpy(np.ascontiguousarray(own)).view(stored)
    return flat.view(dtype).float().numpy()


def bits_of(numbers: Numbers, kind: str) -> Bits:
    """The bits of numbers, rounded to a type that NumPy has not, as wide as it."""
    if kind.endswith("x2"):
        wide = UNSIGNED[bytes_of(kind)]
        low, high = (bits_of(each, kind[:-2]).astype(wide) for each in numbers)
        return low | high << wide(8 * bytes_of(kind[:-2]))
    if kind not in SMALL:
        own = np.ascontiguousarray(numbers, PLAIN[kind])
        return own.view(UNSIGNED[own.dtype.itemsize])
    dtype, _, stored = SMALL[kind]
    rounded = torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).to(dtype)
    return rounded.view(stored).numpy()


def widened(bits: Bits, size: int) -> Bits:
    """Bits of another width: cut, or with zeros before them."""
    return bits if bits.dtype.itemsize == size else bits.astype(UNSIGNED[size])


def factors_of(bits: Bits, kind: str) -> list[Numbers]:
    """What matrix units read in registers of 32 bits, the low numbers first."""
    if kind == "tf32":  # its last bits are not read
        return [(bits & np.uint32(0xFFFFE000)).view(np.float32)]
    width = 8 * FACTOR_BYTES[kind]
    mask = np.uint32((1 << width) - 1)
    parts = (bits >> np.uint32(at) & mask for at in range(0, 32, width))
    return [typed(np.ascontiguousarray(part), kind) for part in parts]


def flushed(numbers: Numbers) -> Numbers:
    """Float32 below its normal numbers as zero, with its sign."""
    tiny = np.abs(numbers) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), numbers), numbers)


def flushing(function: Callable[..., Numbers]) -> Callable[..., Numbers]:
    """A function of float32 that takes and gives no number below the normal ones."""
    return lambda *numbers: flushed(function(*(flushed(each) for each in numbers)))
