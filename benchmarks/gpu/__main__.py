"""``python -m benchmarks.gpu PART --minutes 9 --out DIR``: check, then measure, on one GPU.

Needs torch >= 2.11 and triton >= 3.6, run from the repository root: no network, no installation.
Rows are measured in a process of their own and written as they come, so that whatever fails,
crashes or hangs costs its own row. Ends with 1 where a row failed, and with 2 without a GPU; rows
that are skipped say why, and fail nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.report import Page
from benchmarks.gpu.run import PARTS, measure
from benchmarks.gpu.worker import Worker

FAILED, NO_GPU = 1, 2
"""Exit codes where a row failed, and where nothing could be measured."""


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


if __name__ == "__main__":
    raise SystemExit(main())
