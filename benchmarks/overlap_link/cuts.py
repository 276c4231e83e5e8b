"""Cuts of a GEMM's rows into groups that need no planner: by count, and twelve of fixed form."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

GRANULARITY = 16
"""Rows that a group is a multiple of where there are enough: CPU libraries are slow below."""

PARTS = (2, 3, 4, 6, 8, 12, 16)

FORMS = {
    "small first": (1, 5, 5, 5),
    "small last": (5, 5, 5, 1),
    "geometric up": (1, 2, 4, 8, 16),
    "geometric down": (16, 8, 4, 2, 1),
}
"""Weights of the groups: what a link or a core that starts late, or ends late, may want."""


def unit(m: int, weights: Sequence[int], multiple: int) -> int:
    """Rows that every group is a multiple of: whole register blocks, unless that is too coarse."""
    fine = lcm(multiple, GRANULARITY)
    is_coarse = m * min(weights) < fine * sum(weights)
    return multiple if m % fine or is_coarse else fine


def equal_parts(m: int, parts: int, multiple: int = 1) -> tuple[int, ...]:
    """``m`` rows in so many groups, as equal as units allow; fewer if there are too few units."""
    return weighted(m, (1,) * parts, multiple)


def weighted(m: int, weights: Sequence[int], multiple: int = 1) -> tuple[int, ...]:
    """``m`` rows in groups as large as their weights say, each a multiple of ``multiple``.

    Ends are rounded, so that no rounding adds up; groups of no rows are left out. ``m`` itself
    must be a multiple.
    """
    if m % multiple:
        raise ValueError(f"{m} rows are no multiple of {multiple}")
    rows_of_unit = unit(m, weights, multiple)
    units, total = m // rows_of_unit, sum(weights)
    ends = [units * sum(weights[: i + 1]) // total for i in range(len(weights))]
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return tuple(count * rows_of_unit for count in counts if count)


def fixed_candidates(m: int, multiple: int = 1) -> dict[str, tuple[int, ...]]:
    """The twelve by name, serial as one group.

    Left out are those that ``m`` has too few units for, or that equal one before them.
    """
    forms = {f"{parts} parts": (1,) * parts for parts in PARTS} | FORMS
    found: dict[str, tuple[int, ...]] = {"serial": (m,)}
    for name, weights in forms.items():
        rows = weighted(m, weights, multiple)
        if len(rows) == len(weights) and rows not in found.values():
            found[name] = rows
    return found
