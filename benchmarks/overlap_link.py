"""Chains of a GEMM and a collective over an emulated link: overlapc against serial, Inductor and
the bound.

    python -m benchmarks.overlap_link [--collective all_reduce,all_gather] [--ranks 4] [--quick]

Two or four gloo processes, float32, one thread each, joined by a rate-limited link (network
namespaces, veth, ``tc tbf``; as root, or in a user namespace). Writes NAME.json (every round of
every candidate) and NAME.md (the tables). Without options it takes about 17 minutes: 12 shapes and
six extremes of four chains. ``--ranks 4`` takes about eight minutes for five shapes of each, which
have half the rows, and 15 with ``--shapes 12``. ``--quick`` takes one to two.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.jobs import Job, about, require_links, run_job, write_results
from benchmarks.overlap_rows import Row, from_json, summarise, to_json
from benchmarks.overlap_shapes import COLLECTIVES, KINDS, LOOPBACK, MODELS, Pair, pairs
from benchmarks.overlap_table import markdown, overview, summary_lines
from benchmarks.user_namespace import rerun_if_it_helps

MODULE = "benchmarks.overlap_link"
SECONDS_PER_PAIR = {2: 10.0, 4: 8.0}
SHAPES = {2: 12, 4: 5}
CALIBRATION_SECONDS = 40.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print progress and the summary, write the results; the exit code is 1 if slower."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(MODULE, __doc__ or "").parse_args(words)
    rerun_if_it_helps(MODULE)
    chosen = chosen_pairs(arguments)
    require_links((pair.rate for pair in chosen), MODULE)
    head = about(MODULE, words, arguments.ranks)
    seconds = arguments.seconds or SECONDS_PER_PAIR[arguments.ranks]
    seconds = seconds / 4 if arguments.quick else seconds
    rows: list[Row] = []
    for rate, of_rate in groupby(chosen, key=lambda pair: pair.rate):
        rows += measure_rate(job_of(arguments, rate, seconds, tuple(of_rate)))
        # After each rate: a later one that fails does not lose what took minutes.
        name = arguments.name or default_name("overlap_link", arguments.ranks)
        lines = [to_json(row) for row in rows]
        write_results(arguments.out, name, head, lines, markdown(rows, head))
    print(overview(rows))
    print("\n".join(summary_lines(summarise(rows))))
    return 1 if summarise(rows).slower_than_inductor else 0


def job_of(
    arguments: argparse.Namespace, rate: str, seconds: float, pairs: tuple[Pair, ...]
) -> Job:
    """What the ranks of one rate are to do."""
    calibration = 0.0 if arguments.no_overlapc else CALIBRATION_SECONDS
    return Job(rate, seconds, calibration, pairs, arguments.tuning)


def limit_of(job: Job) -> float:
    """Seconds after which something is wrong."""
    return len(job.pairs) * (4 * (job.seconds + job.tuning_seconds) + 60)


def measure_rate(job: Job) -> list[Row]:
    """Start the ranks once, and let them measure every pair of one rate."""
    ranks, worker = job.pairs[0].ranks, "benchmarks.overlap_worker"
    return [from_json(line) for line in run_job(job, worker, ranks=ranks, timeout=limit_of(job))]


def chosen_pairs(arguments: argparse.Namespace) -> list[Pair]:
    """The pairs that the command line asks for."""
    return pairs(
        arguments.collective,
        arguments.rates,
        ranks=arguments.ranks,
        shapes=arguments.shapes or SHAPES[arguments.ranks],
        quick=arguments.quick,
        whole_rows=arguments.whole_rows,
    )


def default_name(stem: str, ranks: int) -> str:
    """Of the files of results, which differ by the number of ranks."""
    return stem if ranks == 2 else f"{stem}_{ranks}_ranks"


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The options of every benchmark of chains."""
    found = argparse.ArgumentParser(
        f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--collective",
        type=kinds,
        default=tuple(COLLECTIVES.values()),
        help=f"by comma: {', '.join(COLLECTIVES)} (the default) or {', '.join(KINDS)}",
    )
    found.add_argument("--ranks", type=int, choices=sorted(SHAPES), default=2)
    found.add_argument(
        "--rates",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help=f"tc rates or {LOOPBACK}, by comma, for all shapes; by default each has its own",
    )
    most = max(map(len, MODELS.values()))
    found.add_argument(
        "--shapes",
        type=int,
        choices=range(1, most + 1),
        metavar=f"1..{most}",
        help="of each chain, beside the extremes",
    )
    found.add_argument(
        "--whole-rows", action="store_true", help="do not halve the rows for more than two ranks"
    )
    found.add_argument("--quick", action="store_true", help="one shape, one extreme, few rounds")
    found.add_argument("--seconds", type=float, help="of one pair, timed part")
    found.add_argument(
        "--tuning",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="of each pair: run its best plans first and keep the fastest, "
        "as overlapc calibrate --chains does",
    )
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    found.add_argument("--name", help="of the two files, without ending")
    found.add_argument("--no-overlapc", action="store_true", help="only the references")
    return found


def kinds(text: str) -> tuple[str, ...]:
    """``all_reduce,all_to_all_gemm`` → kinds of chains; an unknown name is an error."""
    names = text.split(",")
    for name in names:
        if name not in COLLECTIVES and name not in KINDS:
            known = ", ".join((*COLLECTIVES, *KINDS))
            raise argparse.ArgumentTypeError(f"{name!r} is no chain that is measured: {known} are")
    return tuple(dict.fromkeys(COLLECTIVES.get(name, name) for name in names))


if __name__ == "__main__":
    sys.exit(main())
