"""What instructions compute in each thread by itself, as functions of NumPy's arrays.

Each is rounded once, as the PTX ISA says; approximations are exact here but for what they flush.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.emulated.assembly import Instruction
from tests.emulated.conversions import conversion
from tests.emulated.integers import JOINED, Function, of_integers, product
from tests.emulated.values import flushed, flushing, is_float

COMPARED: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
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
    op, marks = instruction.op, instruction.marks
    kind = instruction.kind if marks else ""
    count = len(instruction.operands) - 1
    if op == "cvt":
        return conversion(marks)
    if op in ("setp", "set"):
        return _comparison(marks, count)
    if op == "selp":
        return (kind, kind, "pred"), kind, lambda a, b, c: np.where(c, a, b)
    if op in ("mul", "mad") and not is_float(kind):
        return product(op, marks)
    if is_float(kind):
        return _of_floats(op, marks, kind, count)
    return of_integers(op, marks, kind, count)


def _comparison(marks: Sequence[str], count: int) -> tuple[Sequence[str], str, Function]:
    name, kind = marks[0], marks[-1]
    joined = next((JOINED[mark] for mark in marks[1:-1] if mark in JOINED), None)

    def compared(a: Any, b: Any, *more: Any) -> Any:
        found = _compared(name, kind, a, b)
        return joined(found, more[0]) if joined else found

    if count != 2 + bool(joined):
        raise NotImplementedError("setp of two results")
    function = _flushing_inputs(compared) if "ftz" in marks else compared
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


def _flushing_inputs(function: Function) -> Function:
    return lambda a, b, *more: function(flushed(a), flushed(b), *more)


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
