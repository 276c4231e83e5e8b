"""What instructions compute of integers in each thread, as functions of NumPy's arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.emulated.values import PLAIN, UNSIGNED, bytes_of

Function = Callable[..., Any]
WIDER = {"16": "32", "32": "64"}
JOINED: dict[str, Function] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def product(op: str, marks: Sequence[str]) -> tuple[Sequence[str], str, Function]:
    """Of integers: the low half, the high one, or both."""
    how, kind = marks[0], marks[-1]
    wide = kind[0] + WIDER.get(kind[1:], "64")
    result = wide if how == "wide" else kind
    size = bytes_of(result)
    bits = 8 * bytes_of(kind)

    def multiplied(a: Any, b: Any, c: Any = None) -> Any:
        if how == "hi":
            exact = (a.astype(object) * b.astype(object)) >> bits
            found = exact.astype(a.dtype)
        else:
            dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{size}")
            found = a.astype(dtype) * b.astype(dtype)
        return found if c is None else found + c

    return (kind, kind, *([result] if op == "mad" else [])), result, multiplied


def of_integers(
    op: str, marks: Sequence[str], kind: str, count: int
) -> tuple[Sequence[str], str, Function] | None:
    if kind not in PLAIN:
        return None
    bits = 1 if kind == "pred" else 8 * bytes_of(kind)
    shifts = {
        "shl": lambda a, n: np.where(n < bits, a << np.minimum(n, bits - 1).astype(a.dtype), 0),
        "shr": lambda a, n: _right(a, n, bits),
    }
    if op in shifts:
        return (kind, "u32"), kind, lambda a, n: shifts[op](a, n).astype(a.dtype)
    functions: dict[str, Function] = {
        **JOINED,
        "not": np.logical_not if kind == "pred" else np.invert,
        "mov": lambda a: a,
        "add": np.add, "sub": np.subtract, "neg": np.negative, "abs": np.abs,
        "min": np.minimum, "max": np.maximum, "div": _quotient,
        "rem": lambda a, b: a - _quotient(a, b) * b,
        "cnot": lambda a: (a == 0).astype(a.dtype),
    }  # fmt: skip
    if op in functions:
        return (kind,) * count, kind, functions[op]
    if op == "bfe":
        return (kind, "u32", "u32"), kind, lambda a, at, n: _field(a, at, n, bits)
    if op == "bfi":
        return (kind, kind, "u32", "u32"), kind, _inserted
    if op in ("popc", "clz"):
        return (kind,), "u32", lambda a: _counted(op, a, bits)
    if op == "prmt":
        return ("u32",) * 3, "u32", _permuted
    if op == "shf":
        return ("u32",) * 3, "u32", _funnel(marks)
    if op == "lop3":
        return ("u32",) * 4, "u32", _of_three
    return None


def _funnel(marks: Sequence[str]) -> Function:
    """A shift of two numbers as one, of which the high half is kept, or the low one."""
    way, how = marks[:2]

    def shifted(low: Any, high: Any, by: Any) -> Any:
        whole = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        n = (by & np.uint32(31) if how == "wrap" else np.minimum(by, 32)).astype(np.uint64)
        found = whole << n >> np.uint64(32) if way == "l" else whole >> n
        return (found & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    return shifted


def _right(a: Any, n: Any, bits: int) -> Any:
    """Signs come in behind numbers that have one."""
    shifted = a >> np.minimum(n, bits - 1).astype(a.dtype)
    return shifted if np.issubdtype(a.dtype, np.signedinteger) else np.where(n < bits, shifted, 0)


def _quotient(a: Any, b: Any) -> Any:
    """Towards zero, and all ones where nothing divides."""
    if np.issubdtype(a.dtype, np.unsignedinteger):
        return np.where(b == 0, ~a.dtype.type(0), a // np.where(b == 0, 1, b).astype(a.dtype))
    safe = np.where(b == 0, 1, b).astype(a.dtype)
    found = np.abs(a.astype(object)) // np.abs(safe.astype(object))
    found = np.where((a < 0) != (safe < 0), -found, found)
    mask = (1 << 8 * a.dtype.itemsize) - 1
    bits = np.array([int(each) & mask for each in np.ravel(found)], UNSIGNED[a.dtype.itemsize])
    return np.where(b == 0, a.dtype.type(-1), bits.view(a.dtype).reshape(np.shape(found)))


def _field(a: Any, at: Any, count: Any, bits: int) -> Any:
    """Some bits of a number; of one with a sign the highest of them is the sign."""
    at, count = (int(np.max(each)) & 255 for each in (at, count))
    if not count:
        return np.zeros_like(a)
    left = max(bits - at - count, 0)
    up = a.view(UNSIGNED[a.dtype.itemsize]) << np.array(left, UNSIGNED[a.dtype.itemsize])
    return up.view(a.dtype) >> a.dtype.type(min(left + at, bits - 1))


def _inserted(low: Any, into: Any, at: Any, count: Any) -> Any:
    mask = ((np.uint64(1) << count.astype(np.uint64)) - np.uint64(1)) << at.astype(np.uint64)
    moved = low.astype(np.uint64) << at.astype(np.uint64)
    return ((into.astype(np.uint64) & ~mask) | (moved & mask)).astype(into.dtype)


def _counted(op: str, a: Any, bits: int) -> Any:
    texts = [format(int(each), f"0{bits}b") for each in np.ravel(a)]
    counts = [t.count("1") if op == "popc" else len(t) - len(t.lstrip("0")) for t in texts]
    return np.array(counts, np.uint32).reshape(np.shape(a))


def _permuted(a: Any, b: Any, choice: Any) -> Any:
    """Each byte of the result by four bits of the choice, the highest of which repeats its sign."""
    whole = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    found = np.zeros(np.broadcast(whole, choice).shape, np.uint64)
    for place in range(4):
        nibble = choice.astype(np.uint64) >> np.uint64(4 * place) & np.uint64(15)
        byte = whole >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        byte = np.where(nibble & np.uint64(8), np.where(byte & np.uint64(128), 255, 0), byte)
        found |= byte.astype(np.uint64) << np.uint64(8 * place)
    return found.astype(np.uint32)


def _of_three(a: Any, b: Any, c: Any, table: Any) -> Any:
    """A truth table of three bits, for each bit."""
    number = int(np.max(table))
    found = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
    for row in range(8):
        if number >> row & 1:
            sides = zip((a, b, c), (row & 4, row & 2, row & 1), strict=True)
            parts = [side if bit else ~side for side, bit in sides]
            found = found | (parts[0] & parts[1] & parts[2])
    return found
