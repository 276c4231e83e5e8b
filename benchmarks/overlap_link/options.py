"""The options of the benchmarks of chains, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.overlap_link.jobs import Job
from benchmarks.overlap_link.shapes import COLLECTIVES, KINDS, LOOPBACK, MODELS, Pair, pairs

SHAPES = {2: 12, 4: 5}
"""Of each chain, by the number of ranks, where none are asked for."""
CALIBRATION_SECONDS = 40.0


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


def job_of(
    arguments: argparse.Namespace, rate: str, seconds: float, pairs: tuple[Pair, ...]
) -> Job:
    """What the ranks of one rate are to do."""
    calibration = 0.0 if arguments.no_overlapc else CALIBRATION_SECONDS
    return Job(rate, seconds, calibration, pairs, arguments.tuning)


def limit_of(job: Job) -> float:
    """Seconds after which something is wrong."""
    return len(job.pairs) * (4 * (job.seconds + job.tuning_seconds) + 60)
