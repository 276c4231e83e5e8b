"""What the rows of GEMMs come to: one line for each claim that can be made of them."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.claims import Rows, good, line
from benchmarks.gpu.gemm.emulated_link import LINKS
from benchmarks.gpu.gemm.speed import SIGNALING

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
