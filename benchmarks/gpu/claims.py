"""Columns of measured rows, drawn together into the lines that claims are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def line(name: str, rows: Rows, column: str) -> list[dict[str, Any]]:
    """A column's values, of ratios the medians; none where no row has it."""
    values = [middle(row[column]) for row in rows if row.get(column) is not None]
    if not values:
        return []
    found = {"row": name, "rows": f"{len(values)} of {len(rows)}"}
    return [{
        **found, "median": statistics.median(values), "geomean": geomean(values),
        "least": min(values), "most": max(values),
    }]  # fmt: skip


def good(rows: Rows) -> Rows:
    """Rows that were measured."""
    return [row for row in rows if not {"error", "skipped"} & set(row)]


def middle(value: Any) -> float:
    """A number, or the median of a ratio with its interval."""
    return float(value[0] if isinstance(value, Sequence) else value)


def geomean(values: Sequence[float]) -> float:
    """Zero where one is."""
    if min(values) <= 0:
        return 0.0
    return math.exp(statistics.fmean(map(math.log, values)))
