"""``python -m benchmarks.gpu PART --minutes 9 --out DIR``: check, then measure, on one GPU.

Needs torch >= 2.11 and triton >= 3.6, run from the repository root: no network, no installation.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

PARTS = {"gemm": "benchmarks.gpu_gemm"}
"""Modules with ``run(deadline, report) -> result``, by the name of the part."""
NO_GPU = 2
"""Exit code where nothing could be measured."""
RESERVE_SECONDS = 30
"""Kept of the minutes for start and the last rounds; chosen."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part; the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="wall-clock budget")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("nothing measured: torch.cuda.is_available() is false here", file=sys.stderr)
        return NO_GPU
    from benchmarks.gpu_timing import Deadline

    began = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    deadline = Deadline.after(given.minutes * 60 - RESERVE_SECONDS)
    result = import_module(PARTS[given.part]).run(deadline, report)
    about = describe(f"python -m benchmarks.gpu {given.part} --minutes {given.minutes:g}")
    for path in write(given.out, given.part, about, result):
        report(f"wrote {path}")
    return 0


def describe(command: str) -> dict[str, str]:
    """The device, the versions, the date and the command."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "command": command,
        "device": f"{properties.name}, {properties.multi_processor_count} SMs",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__},"
        f" triton {triton.__version__}, CUDA {torch.version.cuda}",
        "date": datetime.now(UTC).date().isoformat(),
        "links": "emulated by a paced copy kernel on the same GPU: no data left it",
    }


def write(
    directory: Path, part: str, about: Mapping[str, str], result: Mapping[str, Any]
) -> list[Path]:
    """Write one JSON and one Markdown file; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    device = "".join(c if c.isalnum() else "-" for c in about["device"].split(",")[0].lower())
    stem = directory / f"gpu-{part}-{device}-{about['date']}"
    data, page = stem.with_suffix(".json"), stem.with_suffix(".md")
    data.write_text(json.dumps({"about": about, **result}, indent=1) + "\n", encoding="utf-8")
    page.write_text(markdown(part, about, result), encoding="utf-8")
    return [data, page]


def markdown(part: str, about: Mapping[str, str], result: Mapping[str, Any]) -> str:
    """The page: about, then a table for each list of rows; a row's mappings become columns."""
    lines = [f"# GPU measurements: {part}", ""]
    lines += [f"* {name}: {value}" for name, value in about.items()]
    lines += ["", "Times are medians of device events over interleaved rounds; a speedup is the"]
    lines += ["median of paired ratios with its 95 % interval, above 1 where the column is faster."]
    for title, rows in result.items():
        lines += ["", f"## {title}", "", *table([flat(row) for row in rows])]
    return "\n".join(lines) + "\n"


def flat(row: Mapping[str, Any]) -> dict[str, str]:
    """One level of columns, as text."""
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells |= {f"{name}: {inner}": _cell(item) for inner, item in value.items()}
        else:
            cells[name] = _cell(value)
    return cells


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Markdown lines with one line a column of ``rows``, since there are more columns than rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    body = [[name, *(row.get(name, "") for row in rows)] for name in names]
    if not body:
        return ["nothing measured"]
    head, *rest = body
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rest)]


def _cell(value: Any) -> str:
    match value:
        case float():
            return f"{value:.3g}"
        case [float(median), float(low), float(high)]:
            return f"{median:.3f} [{low:.3f}, {high:.3f}]"
    return str(value)


if __name__ == "__main__":
    raise SystemExit(main())
