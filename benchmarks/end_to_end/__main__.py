"""A sharded Llama end to end: a prefill and a training step, overlapc against Inductor.

    python -m benchmarks.end_to_end [--rates 1gbit,300mbit] [--cases 0,1] [--quick]

Two gloo processes over an emulated link. Cases: 0 prefill and 1 training step, tensor parallel; 2
and 3 the same with the sequence split between the blocks too. Writes NAME.json and NAME.md. Takes
about six minutes for cases 0 and 1 (the default) at both rates, and 12 for all four.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.end_to_end.model import CASES
from benchmarks.end_to_end.rows import EndRow, from_json, lines, markdown, to_json
from benchmarks.end_to_end.worker import NUMBERS
from benchmarks.measuring.results import about, write_results
from benchmarks.overlap_link.jobs import Job, require_links, run_job
from benchmarks.overlap_link.options import CALIBRATION_SECONDS
from benchmarks.overlap_link.shapes import RATES
from benchmarks.processes.user_namespace import rerun_if_it_helps

MODULE = "benchmarks.end_to_end"
RANKS = 2
SECONDS_PER_CASE = 35.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results after each rate, and print the table's cells."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    rerun_if_it_helps(MODULE)
    rates = arguments.rates[-1:] if arguments.quick else arguments.rates
    require_links(rates, MODULE)
    head = about(MODULE, words, RANKS)
    seconds = arguments.seconds / 8 if arguments.quick else arguments.seconds
    os.environ[NUMBERS] = ",".join(map(str, arguments.cases))
    rows: list[EndRow] = []
    for rate in rates:
        job = Job(rate, seconds, 0.0 if arguments.no_overlapc else CALIBRATION_SECONDS)
        limit = len(arguments.cases) * (4 * seconds + 240)
        found = run_job(job, "benchmarks.end_to_end.worker", ranks=RANKS, timeout=limit)
        rows += [from_json(line) for line in found]
        page = markdown(rows, head)
        write_results(arguments.out, arguments.name, head, [to_json(row) for row in rows], page)
    print("\n".join("  ".join(cells) for cells in lines(rows)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"python -m {MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rates", type=lambda text: tuple(text.split(",")), default=RATES, help="by comma"
    )
    parser.add_argument("--cases", type=_cases, default=(0, 1), help="numbers, by comma")
    parser.add_argument("--seconds", type=float, default=SECONDS_PER_CASE, help="timed, of a case")
    parser.add_argument("--quick", action="store_true", help="one rate, few rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    parser.add_argument("--name", default="end_to_end", help="of the two files, without ending")
    parser.add_argument("--no-overlapc", action="store_true", help="only Inductor")
    return parser


def _cases(text: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split(",") if number.isdecimal())
    if not numbers or max(numbers) >= len(CASES) or len(numbers) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers of 0 to {len(CASES) - 1}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
