"""What a run writes: how its numbers came about, one JSON and one Markdown file."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path


def about(module: str, argv: Sequence[str], ranks: int) -> dict[str, str]:
    """Where and how numbers came about, for the head of their page."""
    versions = [f"{name} {metadata.version(name)}" for name in ("overlapc", "torch")]
    cores = len(os.sched_getaffinity(0))
    sharing = "one core each" if ranks <= cores else f"sharing {cores} cores"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m {module} {shlex.join(argv)}".rstrip(),
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
        "processor": f"{_processor()}, {cores} cores used",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "ranks": f"{ranks} gloo processes, float32, one thread each, {sharing}",
        "link": "emulated: network namespaces joined by veth, rate-limited by tc tbf"
        + (", and a bridge whose ports are limited too" if ranks > 2 else ""),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def write_results(
    folder: Path, name: str, head: Mapping[str, str], rows: Sequence[str], page: str
) -> None:
    """Write NAME.json (the head, and ``rows``, each JSON already) and NAME.md (the page)."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": head, "rows": [json.loads(row) for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)
    print(f"written: {folder / name}.json, {folder / name}.md", flush=True)
