"""The rows of one part, measured until its minutes are up; its page is written after each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import HIDDEN, Page, cell
from benchmarks.gpu.verdicts import verdicts
from benchmarks.gpu.worker import HUNG, Row, Runner, failed
from benchmarks.measuring.deadline import Deadline

PARTS = {
    "attention": "benchmarks.gpu.attention.part",
    "gemm": "benchmarks.gpu.gemm.part",
    "linear": "benchmarks.gpu.linear",
    "model": "benchmarks.gpu.model",
}
"""Modules with ``rows`` and ``tables``, by part."""
RESERVE_SECONDS = 10
"""Kept of the minutes for what ends a run; chosen."""
MOST_HUNG = 2
"""Rows that are alike and may take all of their limits: what hangs in each of them would take the
minutes of all that comes after."""
VERDICTS = "Asked of an H200, and what this device gave"
DESCRIBED = Row("about", "this machine", "benchmarks.gpu.device.describe", limit=120)


def measure(part: str, page: Page, runner: Runner, minutes: float) -> int:
    """Measure as many rows as the minutes allow; how many failed."""
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    module: Any = import_module(PARTS[part])
    deadline = Deadline.after(minutes * 60 - RESERVE_SECONDS)
    about = {
        "command": f"python -m benchmarks.gpu {part} --minutes {minutes:g}",
        "date": datetime.now(UTC).date().isoformat(),
        **runner.run(DESCRIBED, DESCRIBED.limit),
    }
    if "error" in about:
        report(f"the device could not be read: {about['error']}")
        page.write(about, {})
        return 1
    shipped = about.pop("shipped")
    done: dict[str, list[dict[str, Any]]] = {}

    def write() -> list[Path]:
        try:
            shown = module.tables(done, shipped)
            shown = {VERDICTS: verdicts(part, shown), **shown}
        except Exception as error:  # what was measured is worth more than what it comes to
            shown = {"Summary": [{"error": repr(error)}], **done}
        try:
            return page.write(about, shown)
        except OSError as error:  # a later row may find room again
            report(f"not written: {error}")
            return []

    failures, left = _run(module.rows(done, shipped), runner, deadline, done, write, report)
    tried = sum(map(len, done.values()))
    about["rows"] = f"{tried} tried, {failures} of them failed, {left} left when time was up"
    for path in write():
        report(f"wrote {path}")
    return failures


def _run(
    rows: Iterator[Row],
    runner: Runner,
    deadline: Deadline,
    done: dict[str, list[dict[str, Any]]],
    write: Callable[[], Any],
    report: Callable[[str], None],
) -> tuple[int, int]:
    """How many rows failed, and how many were left when time was up."""
    failures = left = 0
    hung = Counter[tuple[str, str]]()
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return failures, left
        except Exception as error:  # what follows depends on it, what is measured does not
            report(f"no more rows: {error!r}")
            return failures + 1, left
        if not deadline.left():
            left += 1
            continue
        if hung[likeness(row)] < MOST_HUNG:
            found = runner.run(row, min(row.limit, deadline.left() + RESERVE_SECONDS / 2))
        else:
            found = failed(row, f"Not tried: {MOST_HUNG} rows like it did not end.")
        hung[likeness(row)] += str(found.get("error", "")).startswith(HUNG)
        failures += "error" in found
        done.setdefault(row.table, []).append(found)
        write()
        report(f"{row.table}, {row.name}: {headline(found)}")


def likeness(row: Row) -> tuple[str, str]:
    """What rows share that are likely to hang together: a function, and the kind of kernel or
    collective that it is given; the table where it is given none."""
    return row.function, row.arguments.get("kind", row.table)


def headline(found: dict[str, Any]) -> str:
    """A row in one line of progress."""
    shown = {k: v for k, v in found.items() if not isinstance(v, dict) and k not in HIDDEN}
    return ", ".join(f"{name} {cell(value)}" for name, value in shown.items() if name != "row")
