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

import sys
from collections.abc import Sequence
from itertools import groupby

from benchmarks.measuring.results import about, write_results
from benchmarks.overlap_link.jobs import Job, require_links, run_job
from benchmarks.overlap_link.options import chosen_pairs, default_name, job_of, limit_of, parser
from benchmarks.overlap_link.rows import Row, from_json, summarise, to_json
from benchmarks.overlap_link.table import markdown, overview, summary_lines
from benchmarks.processes.user_namespace import rerun_if_it_helps

MODULE = "benchmarks.overlap_link"
SECONDS_PER_PAIR = {2: 10.0, 4: 8.0}


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


def measure_rate(job: Job) -> list[Row]:
    """Start the ranks once, and let them measure every pair of one rate."""
    ranks, worker = job.pairs[0].ranks, "benchmarks.overlap_link.worker"
    return [from_json(line) for line in run_job(job, worker, ranks=ranks, timeout=limit_of(job))]


if __name__ == "__main__":
    sys.exit(main())
