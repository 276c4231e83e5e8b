"""What the rows of a run come to: one line for each claim that can be made of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.emulated_link import LINKS
from benchmarks.gpu_speed import SIGNALING

Rows = Sequence[Mapping[str, Any]]

PREDICTED = "predicted over measured"
CHOSEN = "chosen over serial"


def summary(checked: Rows, speed: Rows, overlap: Rows) -> list[dict[str, Any]]:
    """Of checks, of GEMMs alone and of overlap; rows that failed count where they are checks."""
    right = good(checked)
    lines: list[dict[str, Any]] = []
    if checked:
        name = "kernels and paths that are right"
        lines.append({"row": name, "rows": f"{len(right)} of {len(checked)}"})
    speed, overlap = good(speed), good(overlap)
    for column in dict.fromkeys(name for row in speed for name in row):
        if column.startswith(("of torch.mm", "torch.mm again", SIGNALING)):
            lines += line(f"GEMM: {column}", speed, column)
    for link in LINKS:
        its = [row for row in overlap if row["EMULATED link"] == link]
        for column in ("signaled over serial", "two parts over serial", "share of the bound"):
            lines += line(f"over EMULATED {link}: {column}", its, column)
    lines += line("what is predicted to be best, over serial", overlap, CHOSEN)
    for name in ("serial", "two parts", "signaled"):
        errors = [
            {"error": abs(row[column] - 1)}
            for row in overlap
            if (column := f"{name}: {PREDICTED}") in row
        ]
        lines += line(f"error of predictions, {name}", errors, "error")
    return lines


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
