"""What a launcher asks of its ranks, and how they are started for it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.overlap_link.shapes import LOOPBACK, Pair, Shape
from benchmarks.processes.link import LinkError, available, rate_limited_link
from benchmarks.processes.ranks import run_ranks

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
