"""What a launcher asks of its ranks, how they are started for it, and what is said of a run."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.link import LinkError, available, rate_limited_link
from benchmarks.overlap_shapes import LOOPBACK, Pair, Shape
from benchmarks.ranks import run_ranks

STARTUP_SECONDS = 300.0
"""Imports, calibration and the first compilation of the ranks of one rate, at most."""


@dataclass(frozen=True)
class Job:
    """What the launcher asks of the ranks of one rate."""

    rate: str
    """Of the link, or ``LOOPBACK``."""
    seconds: float
    """To be spent on the timed rounds of one pair."""
    calibration_seconds: float
    """For measuring machine and link, for overlapc; 0 leaves overlapc out."""
    pairs: tuple[Pair, ...] = ()
    """All at ``rate``; none where whole models are measured."""
    tuning_seconds: float = 0.0
    """For running the best plans of each pair and keeping the fastest, as ``overlapc calibrate
    --chains`` does; 0 leaves plans to predictions."""
    rest_seconds: float = 0.0
    """Silence before each run, after which the link's token bucket is full."""
    results: str = ""
    """File that rank 0 adds lines to."""
    targets: str = ""
    """Folder that rank 0 saves the calibrated target in."""

    def save(self, path: Path) -> None:
        """Write what ``load`` reads."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Job:
        """Read what ``save`` wrote."""
        value = json.loads(path.read_text())
        pairs = (Pair(**{**pair, "shape": Shape(**pair["shape"])}) for pair in value.pop("pairs"))
        return Job(pairs=tuple(pairs), **value)


def run_job(job: Job, module: str, *, ranks: int, timeout: float) -> list[str]:
    """Run ``module`` with the job on every rank, over its link; return the lines of its results.

    ``timeout`` in seconds comes on top of ``STARTUP_SECONDS``. The job's files and its rest are
    filled in here. Raises RanksError if a rank fails.
    """
    making = nullcontext() if job.rate == LOOPBACK else rate_limited_link(ranks, job.rate)
    with making as link, tempfile.TemporaryDirectory(prefix="overlapc-job-") as directory:
        print(f"{link or LOOPBACK}, {ranks} ranks", flush=True)
        folder = Path(directory)
        results = folder / "results.jsonl"
        results.touch()
        rest = link.refill_seconds if link else 0.0
        job = replace(job, rest_seconds=rest, results=str(results), targets=directory)
        job.save(folder / "job.json")
        command = [sys.executable, "-m", module, str(folder / "job.json")]
        run_ranks([command] * ranks, link, timeout=STARTUP_SECONDS + timeout).check()
        return results.read_text().splitlines()


def require_links(rates: Iterable[str], where: str) -> None:
    """Raise LinkError where one of the rates needs a link and none can be made."""
    if all(rate == LOOPBACK for rate in rates) or not (reason := available()):
        return
    raise LinkError(
        f"No link can be emulated here: {reason}",
        where=where,
        remedy=f"run as root with iproute2 installed, or ask for the rate {LOOPBACK}",
    )


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
