"""``python -m benchmarks.gpu PART --minutes 9 --out DIR``: check, then measure, on one GPU.

Needs torch >= 2.11 and triton >= 3.6, run from the repository root: no network, no installation.
Rows are measured in a process of their own and written as they come, so that whatever fails,
crashes or hangs costs its own row. Ends with 1 where a row failed, and with 2 without a GPU; rows
that are skipped say why, and fail nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.deadline import Deadline
from benchmarks.gpu_report import HIDDEN, Page, cell
from benchmarks.gpu_worker import HUNG, Row, Runner, Worker, failed

PARTS = {
    "attention": "benchmarks.gpu_attention",
    "gemm": "benchmarks.gpu_gemm",
    "linear": "benchmarks.gpu_linear",
    "model": "benchmarks.gpu_model",
}
"""Modules with ``rows`` and ``tables``, by part."""
FAILED, NO_GPU = 1, 2
"""Exit codes where a row failed, and where nothing could be measured."""
RESERVE_SECONDS = 10
"""Kept of the minutes for what ends a run; chosen."""
MOST_HUNG = 2
"""Rows that are alike and may take all of their limits: what hangs in each of them would take the
minutes of all that comes after."""
VERDICTS = "Asked of an H200, and what this device gave"
DESCRIBED = Row("about", "this machine", "benchmarks.gpu_device.describe", limit=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part; the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="wall-clock budget")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    if why := why_not():
        print(f"nothing measured: {why}", file=sys.stderr)
        return NO_GPU
    worker = Worker()
    try:
        failures = measure(given.part, Page(given.out, given.part), worker, given.minutes)
    finally:
        worker.close()
    return FAILED if failures else 0


def why_not() -> str:
    """Why nothing can be measured here; empty if something can."""
    if why := missing():
        return why
    import torch

    return "" if torch.cuda.is_available() else "torch.cuda.is_available() is false here"


def missing() -> str:
    """Which package this Python lacks, and why; empty if none."""
    for name in ("torch", "triton"):
        try:
            import_module(name)
        except ImportError as error:
            return f"{sys.executable} cannot import {name}: {error}"
    return ""


def measure(part: str, page: Page, runner: Runner, minutes: float) -> int:
    """Measure as many rows as the minutes allow; how many failed."""
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    module: Any = import_module(PARTS[part])
    verdicts: Any = import_module("benchmarks.gpu_verdicts").verdicts
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


if __name__ == "__main__":
    raise SystemExit(main())
