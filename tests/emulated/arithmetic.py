"""What instructions compute in each thread by itself, as functions of NumPy's arrays.

Each is rounded once, as the PTX ISA says; approximations are exact here but for what they flush.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.emulated.assembly import Instruction
from tests.emulated.conversions import conversion
from tests.emulated.values import PLAIN, UNSIGNED, bytes_of, flushing, is_float

Function = Callable[..., Any]
WIDER = {"16": "32", "32": "64"}

COMPARED: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
JOINED: dict[str, Function] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
FLOATS: dict[str, Function] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "copysign": lambda a, b: np.copysign(b, a),
    "ex2": np.exp2, "lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
    "rcp": lambda a: 1 / a, "rsqrt": lambda a: 1 / np.sqrt(a),
}  # fmt: skip


def computed(instruction: Instruction) -> tuple[Sequence[str], str, Function] | None:
    """The types of an instruction's sources and of its result, and the function between; None where
    it is not of this sort."""
    op, marks, kind = (
        instruction.op,
        instruction.marks,
        instruction.kind if instruction.marks else "",
    )
    count = len(instruction.operands) - 1
    if op == "cvt":
        return conversion(marks)
    if op in ("setp", "set"):
        return _comparison(marks, count)
    if op == "selp":
        return (kind, kind, "pred"), kind, lambda a, b, c: np.where(c, a, b)
    if op == "shf":
        return ("u32",) * 3, "u32", _funnel(marks)
    if op in ("mul", "mad") and not is_float(kind):
        return _product(op, marks)
    if is_float(kind):
        return _of_floats(op, marks, kind, count)
    return _of_integers(op, kind, count)


def _comparison(marks: Sequence[str], count: int) -> tuple[Sequence[str], str, Function]:
    name, kind = marks[0], marks[-1]
    joined = next((JOINED[mark] for mark in marks[1:-1] if mark in JOINED), None)

    def compared(a: Any, b: Any, *more: Any) -> Any:
        found = _compared(name, kind, a, b)
        return joined(found, more[0]) if joined else found

    if count != 2 + bool(joined):
        raise NotImplementedError("setp of two results")
    function = flushing_inputs(compared) if "ftz" in marks else compared
    return (kind, kind, *(["pred"] if joined else [])), "pred", function


def _compared(name: str, kind: str, a: Any, b: Any) -> Any:
    if not is_float(kind):
        return COMPARED[name](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    if name[-1] == "u" and name[:-1] in COMPARED:
        return COMPARED[name[:-1]](a, b) | unordered
    return COMPARED[name](a, b) & ~unordered


def flushing_inputs(function: Function) -> Function:
    from tests.emulated.values import flushed

    return lambda a, b, *more: function(flushed(a), flushed(b), *more)


def _product(op: str, marks: Sequence[str]) -> tuple[Sequence[str], str, Function]:
    """Of integers: the low half, the high one, or both."""
    how, kind = marks[0], marks[-1]
    wide = kind[0] + WIDER.get(kind[1:], "64")
    result = wide if how == "wide" else kind
    size = bytes_of(result)
    bits = 8 * bytes_of(kind)

    def product(a: Any, b: Any, c: Any = None) -> Any:
        if how == "hi":
            exact = (a.astype(object) * b.astype(object)) >> bits
            found = exact.astype(a.dtype)
        else:
            dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{size}")
            found = a.astype(dtype) * b.astype(dtype)
        return found if c is None else found + c

    return (kind, kind, *([result] if op == "mad" else [])), result, product


def _of_floats(
    op: str, marks: Sequence[str], kind: str, count: int
) -> tuple[Sequence[str], str, Function] | None:
    if op in ("fma", "mad"):
        function = _fma
    elif op in ("min", "max"):
        ordered = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[op]
        function = ordered["NaN" in marks]
    elif op in FLOATS:
        function = FLOATS[op]
        if op == "rcp" and kind == "f64":
            function = _rough_reciprocal
        elif op in ("ex2", "lg2", "sin", "cos", "tanh", "rsqrt"):
            exact = function
            function = lambda a: exact(a.astype(np.float64)).astype(a.dtype)  # noqa: E731
    else:
        return None
    if "rz" in marks or "rm" in marks or "rp" in marks:
        raise NotImplementedError(f"{op} that is not rounded to the nearest")
    if "sat" in marks:
        unbounded = function
        function = lambda *numbers: np.clip(unbounded(*numbers), 0, 1)  # noqa: E731
    return (
        (kind,) * count,
        kind,
        flushing(function) if "ftz" in marks and kind == "f32" else function,
    )


def _fma(a: Any, b: Any, c: Any) -> Any:
    """Rounded once of float32 and less: float64 holds their products."""
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _rough_reciprocal(a: Any) -> Any:
    """Of float64 as ``rcp.approx.ftz.f64`` gives it: the upper half of its bits."""
    found = np.ascontiguousarray(1 / a)
    rough = (found.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    return np.where(np.isfinite(found), rough, found)


def _of_integers(op: str, kind: str, count: int) -> tuple[Sequence[str], str, Function] | None:
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
