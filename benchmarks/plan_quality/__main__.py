"""Is the chosen plan the best one? It against twelve fixed cuts of each chain, over a link.

    python -m benchmarks.plan_quality [--collective all_reduce,all_gather] [--quick]

The twelve: serial, seven splits into equal parts, and four uneven ones. All of them and the plan
run on one executor, written by hand, in one interleaved loop; then the best three of the twelve and
the plan are measured afresh, for the best of twelve noisy values is better than it really is.
Writes NAME.json and NAME.md. Without options it takes about eight minutes: seven shapes of each of
four chains, over two ranks. ``--ranks 4`` takes about six for three shapes each. ``--quick`` takes
one to two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from benchmarks.measuring.results import about, write_results
from benchmarks.overlap_link.jobs import require_links, run_job
from benchmarks.overlap_link.options import chosen_pairs, default_name, job_of, limit_of, parser
from benchmarks.plan_quality.rows import from_json, markdown, summarise, summary_lines, to_json
from benchmarks.processes.user_namespace import rerun_if_it_helps

MODULE = "benchmarks.plan_quality"
SECONDS_PER_PAIR = 9.0
SHAPES = {2: 7, 4: 3}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the summary, write the results; the exit code is 1 if the goal is missed."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(MODULE, __doc__ or "").parse_args(words)
    rerun_if_it_helps(MODULE)
    arguments.shapes = arguments.shapes or SHAPES[arguments.ranks]
    chosen = [pair for pair in chosen_pairs(arguments) if not pair.is_extreme]
    require_links((pair.rate for pair in chosen), MODULE)
    head = about(MODULE, words, arguments.ranks)
    seconds = arguments.seconds or SECONDS_PER_PAIR
    rows = []
    for rate, of_rate in groupby(chosen, key=lambda pair: pair.rate):
        job = job_of(arguments, rate, seconds, tuple(of_rate))
        worker = "benchmarks.plan_quality.worker"
        lines = run_job(job, worker, ranks=arguments.ranks, timeout=limit_of(job))
        rows += [from_json(line) for line in lines]
        name = arguments.name or default_name("plan_quality", arguments.ranks)
        lines = [to_json(row) for row in rows]
        write_results(arguments.out, name, head, lines, markdown(rows, head))
    print("\n".join(summary_lines(rows)))
    return 0 if summarise(rows).is_reached else 1


if __name__ == "__main__":
    sys.exit(main())
