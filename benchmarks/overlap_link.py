"""GEMM and all-reduce over an emulated link: overlapc against serial, Inductor and the bound.

    python -m benchmarks.overlap_link [--rates 300mbit,1gbit] [--quick] [--out benchmarks/results]

Two gloo processes, float32, one thread and one core each, joined by a rate-limited link (network
namespaces, veth, ``tc tbf``; as root, or in a user namespace). Writes NAME.json (every round of
every candidate) and NAME.md (the table).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib import metadata
from itertools import groupby
from pathlib import Path

from benchmarks.link import Link, LinkError, available, rate_limited_link
from benchmarks.overlap_rows import Row, from_json, summarise, to_json
from benchmarks.overlap_shapes import LOOPBACK, RATES, Pair, pairs
from benchmarks.overlap_table import markdown, summary_lines
from benchmarks.overlap_worker import Job
from benchmarks.ranks import run_ranks
from benchmarks.user_namespace import rerun_if_it_helps

RANKS = 2
SECONDS_PER_PAIR = 30.0
CALIBRATION_SECONDS = 20.0
STARTUP_SECONDS = 240.0
"""Imports, calibration and the first compilation of the ranks of one rate."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print progress and the summary, write the results; the exit code is 1 if slower."""
    arguments = _parser().parse_args(argv)
    rerun_if_it_helps("benchmarks.overlap_link")
    rates = tuple(arguments.rates.split(","))
    chosen = pairs(rates, quick=arguments.quick)
    if (reason := available()) and any(pair.rate != LOOPBACK for pair in chosen):
        raise LinkError(
            f"No link can be emulated here: {reason}",
            where="benchmarks.overlap_link",
            remedy=f"run as root with iproute2 installed, or pass --rates {LOOPBACK}",
        )
    about = _about(sys.argv if argv is None else ["benchmarks.overlap_link", *argv])
    seconds = arguments.seconds / 4 if arguments.quick else arguments.seconds
    rows: list[Row] = []
    for rate, of_rate in groupby(chosen, key=lambda pair: pair.rate):
        rows += measure_rate(rate, list(of_rate), seconds, with_overlapc=not arguments.no_overlapc)
        # After each rate: a later one that fails does not lose what took minutes.
        _write(arguments.out, arguments.name, rows, about)
    print("\n".join(summary_lines(summarise(rows))))
    return 1 if summarise(rows).slower_than_inductor else 0


def measure_rate(
    rate: str, of_rate: list[Pair], seconds: float, *, with_overlapc: bool
) -> list[Row]:
    """Start the ranks once, and let them measure every pair of one rate."""
    making = nullcontext() if rate == LOOPBACK else rate_limited_link(RANKS, rate)
    with making as link, tempfile.TemporaryDirectory(prefix="overlap-") as directory:
        print(f"{link or LOOPBACK}: {len(of_rate)} shapes, {RANKS} ranks", flush=True)
        folder = Path(directory)
        job = _job(of_rate, seconds, link, folder, with_overlapc=with_overlapc)
        job.save(folder / "job.json")
        command = [sys.executable, "-m", "benchmarks.overlap_worker", str(folder / "job.json")]
        limit = STARTUP_SECONDS + len(of_rate) * (4 * seconds + 60)
        run_ranks([command] * RANKS, link, timeout=limit).check()
        return [from_json(line) for line in Path(job.results).read_text().splitlines()]


def _job(
    of_rate: list[Pair], seconds: float, link: Link | None, folder: Path, *, with_overlapc: bool
) -> Job:
    return Job(
        pairs=of_rate,
        seconds=seconds,
        rest_seconds=link.refill_seconds if link else 0.0,
        calibration_seconds=CALIBRATION_SECONDS if with_overlapc else 0.0,
        results=str(folder / "rows.jsonl"),
        targets=str(folder),
    )


def _about(argv: Sequence[str]) -> dict[str, str]:
    """Where and how the numbers came about."""
    versions = [f"{name} {metadata.version(name)}" for name in ("overlapc", "torch")]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m benchmarks.overlap_link {shlex.join(argv[1:])}".rstrip(),
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores used",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "ranks": f"{RANKS} gloo processes, float32, one thread and one core each",
        "link": "emulated link: network namespaces joined by veth, rate-limited by tc tbf",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _write(folder: Path, name: str, rows: Sequence[Row], about: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "rows": [json.loads(to_json(row)) for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(rows, about))
    print(f"written: {folder / name}.json, {folder / name}.md")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.overlap_link", description=__doc__)
    parser.add_argument(
        "--rates", default=",".join(RATES), help=f"tc rates or {LOOPBACK}, by comma"
    )
    parser.add_argument("--quick", action="store_true", help="few shapes, few rounds")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS_PER_PAIR, help="a pair, timed part"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    parser.add_argument("--name", default="overlap_link", help="of the two files, without ending")
    parser.add_argument("--no-overlapc", action="store_true", help="only the references")
    return parser


if __name__ == "__main__":
    sys.exit(main())
