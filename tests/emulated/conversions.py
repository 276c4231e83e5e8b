"""What ``cvt`` does between two types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.emulated.values import LARGEST, PLAIN, flushed, is_float

TO_INTEGERS: dict[str, Callable[[Any], Any]] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip


def conversion(marks: Sequence[str]) -> tuple[Sequence[str], str, Callable[..., Any]]:
    """The types of its sources and of its result, and the function between."""
    to, source = marks[-2:]
    if to == "tf32":
        return (source,), "f32", _nearest_tf32
    if to.endswith("x2"):
        if source.endswith("x2"):
            return (source,), to, lambda pair: pair
        # The first source is the upper one.
        finite = LARGEST.get(to[:-2]) if "satfinite" in marks else None
        return (source, source), to, lambda high, low: _bounded(np.stack([low, high]), finite)
    if is_float(to) and is_float(source):
        return (source,), to, lambda a: _rounded(a, to, marks)
    if is_float(source):
        return (source,), to, lambda a: _integers(a, to, marks)
    if is_float(to):
        return (source,), to, lambda a: a.astype(PLAIN.get(to, np.float32))
    if "sat" in marks:
        ends = np.iinfo(PLAIN[to])
        return (
            (source,),
            to,
            lambda a: np.clip(a.astype(object), ends.min, ends.max).astype(PLAIN[to]),
        )
    return (source,), to, lambda a: a.astype(PLAIN[to])


def _nearest_tf32(a: Any) -> Any:
    """Ten bits behind the point, halves away from zero."""
    bits = np.ascontiguousarray(a).view(np.uint32)
    near = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(a), near.view(np.float32), a)


def _bounded(pair: Any, largest: float | None) -> Any:
    return pair if largest is None else np.clip(pair, -largest, largest)


def _rounded(a: Any, to: str, marks: Sequence[str]) -> Any:
    if "rz" in marks and to in ("f32", "f16"):
        raise NotImplementedError("cvt towards zero")
    for mark, function in TO_INTEGERS.items():
        a = function(a) if mark in marks else a
    a = flushed(a) if "ftz" in marks and a.dtype == np.float32 else a
    found = a.astype(PLAIN.get(to, np.float32))
    found = flushed(found) if "ftz" in marks and found.dtype == np.float32 else found
    return np.clip(found, 0, 1) if "sat" in marks else found


def _integers(a: Any, to: str, marks: Sequence[str]) -> Any:
    """Too large numbers become the largest, what is none becomes zero."""
    whole = next(TO_INTEGERS[mark] for mark in marks if mark in TO_INTEGERS)(a.astype(np.float64))
    ends, dtype = np.iinfo(PLAIN[to]), PLAIN[to]
    inside = (whole > ends.min) & (whole < float(ends.max))
    found = np.where(inside, whole, 0).astype(dtype)
    found = np.where(whole <= ends.min, ends.min, found)
    return np.where(whole >= float(ends.max), ends.max, found).astype(dtype)
