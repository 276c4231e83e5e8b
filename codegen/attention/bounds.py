"""Between which numbers scores lie, as far as their program tells, and the φ that is safe there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from overlapc.codegen.attention.policies import LARGEST, SAFE_SUMS
from overlapc.codegen.epilogue import Call, Ref
from overlapc.codegen.function import bind
from overlapc.codegen.promotion import CannotLower
from overlapc.planning.attention.fills import WEAKEST_FILL

Interval = tuple[float, float]

ANY: Interval = (-math.inf, math.inf)
MOST_KEYS = 1 << 24
"""Of a row: a bound is for every length that sizes may take. Chosen."""
SLACK = 1.0
"""Nats on either side for roundings of scores: of a cap of 500 in bfloat16."""


def bounds_of(calls: Sequence[Call], product: Interval = ANY) -> Interval:
    """Return bounds of the last value of calls on a product; inputs may hold any numbers."""
    values: list[Interval] = [product]
    for call in calls:
        values.append(_bounds(call, values))
    return values[-1]


def safe_phi(dtype: str, bounds: Interval, most_keys: int = MOST_KEYS) -> float | None:
    """Return the φ nearest to zero relative to which every row's sum of weights is exact.

    ``bounds`` are of the scores that a row keeps, of ``most_keys`` at most. None where there is no
    such φ for weights of ``dtype``.
    """
    least, most = bounds
    sums = SAFE_SUMS.get(dtype)
    if sums is None or not (math.isfinite(least) and math.isfinite(most)):
        return None
    above = min(math.log(sums.most) - math.log(most_keys), math.log(LARGEST[dtype]))
    low = most - above + SLACK
    high = least - math.log(max(sums.least, sums.least_each)) - SLACK
    return min(max(0.0, low), high) if low <= high else None


def _bounds(call: Call, values: Sequence[Interval]) -> Interval:
    rule = RULES.get(call.op.split(".")[1])
    if rule is None:
        return ANY
    try:
        given = bind(call)
    except CannotLower:
        return ANY
    read = {name: _operand(value, values) for name, value in given.items()}
    found = rule(given, read)
    return ANY if any(math.isnan(number) for number in found) else found


def _operand(argument: Any, values: Sequence[Interval]) -> Interval:
    if isinstance(argument, Ref):
        return values[argument.index] if argument.kind == "value" else ANY
    is_number = isinstance(argument, int | float) and not isinstance(argument, bool)
    return (float(argument), float(argument)) if is_number else ANY


def _times(one: Interval, other: Interval) -> Interval:
    # Zero times what is unbounded is no bound: NaN, which gives none.
    products = [a * b for a in one for b in other]
    return (math.nan, math.nan) if any(map(math.isnan, products)) else (
        min(products), max(products)
    )  # fmt: skip


def _plus(one: Interval, other: Interval) -> Interval:
    return one[0] + other[0], one[1] + other[1]


def _divided(one: Interval, other: Interval) -> Interval:
    if other[0] <= 0 <= other[1] or not all(map(math.isfinite, other)):
        return ANY
    return _times(one, (1 / other[1], 1 / other[0]))


def _within(one: Interval, least: float, most: float) -> Interval:
    return min(max(one[0], least), most), max(min(one[1], most), least)


def _chosen(given: Any, read: Any) -> Interval:
    """Between both sides, but for a fill that no weight comes from."""
    sides = [read[name] for name in ("self", "other")]
    seen = [side for side in sides if side[1] > WEAKEST_FILL] or sides
    return min(side[0] for side in seen), max(side[1] for side in seen)


def _clamped(given: Any, read: Any) -> Interval:
    least = read["min"][0] if isinstance(given.get("min"), int | float) else -math.inf
    most = read["max"][1] if isinstance(given.get("max"), int | float) else math.inf
    return _within(read["self"], least, most)


def _square(one: Interval) -> Interval:
    ends = [end * end for end in one]
    return 0.0 if one[0] <= 0 <= one[1] else min(ends), max(ends)


Rule = Callable[[Any, Any], Interval]

RULES: dict[str, Rule] = {
    "tanh": lambda given, read: (-1.0, 1.0),
    "sigmoid": lambda given, read: (0.0, 1.0),
    "sin": lambda given, read: (-1.0, 1.0),
    "cos": lambda given, read: (-1.0, 1.0),
    "erf": lambda given, read: (-1.0, 1.0),
    "mul": lambda given, read: _times(read["self"], read["other"]),
    "div": lambda given, read: _divided(read["self"], read["other"]),
    "add": lambda given, read: _plus(read["self"], _times(read["other"], read["alpha"])),
    "sub": lambda given, read: _plus(
        read["self"], _times(_times(read["other"], read["alpha"]), (-1.0, -1.0))
    ),
    "neg": lambda given, read: (-read["self"][1], -read["self"][0]),
    "relu": lambda given, read: _within(read["self"], 0.0, math.inf),
    "clamp": _clamped,
    "hardtanh": lambda given, read: _within(read["self"], given["min_val"], given["max_val"]),
    "square": lambda given, read: _square(read["self"]),
    "where": _chosen,
}
"""By name of an op. Of every other nothing is known."""
