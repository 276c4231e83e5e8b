"""One rank of the end-to-end benchmark: compiles each case with both compilers, and times them."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.end_to_end.model import (
    CASES,
    SHARDINGS,
    Case,
    compute,
    prefill_sites,
    results,
    step,
    whole_model,
)
from benchmarks.end_to_end.rows import EAGER, INDUCTOR_AGAIN, EndRow, to_json
from benchmarks.measuring.paired import Samples, measure
from benchmarks.overlap_link.jobs import Job
from benchmarks.overlap_link.rows import INDUCTOR, OVERLAPC
from benchmarks.overlap_link.worker import calibrated, checked, relative_error
from benchmarks.processes.ranks import GroupRanks, run_rank
from examples.llama_bound import bound_of_model

NUMBERS = "END_TO_END_CASES"
"""Environment variable with the indices into ``CASES`` that are measured."""

MIN_ROUNDS, MAX_ROUNDS = 7, 25
"""Seven are the fewest with a 95 % interval at all that two outliers cannot explain away."""


def measure_case(case: Case, job: Job, group: dist.ProcessGroup, target: Any | None) -> EndRow:
    """Compile, compare with eager, and time in one interleaved loop."""
    torch.compiler.reset()
    before = known_sites(target)
    mesh = init_device_mesh("cpu", (group.size(),))
    llama = SHARDINGS[case.sharding](whole_model(), mesh)
    # Each compiler has a function of its own: one's code would not be compiled for the other.
    runs = {EAGER: compute(llama, trains=case.trains)}
    runs[INDUCTOR] = torch.compile(compute(llama, trains=case.trains), backend="inductor")
    if target is not None:
        options: dict[str, Any] = {"target": target}
        function = compute(llama, trains=case.trains)
        runs[OVERLAPC] = torch.compile(function, backend="overlapc", options=options)
    expected: Sequence[torch.Tensor] = ()
    errors = {}
    for name, run in runs.items():
        start = time.perf_counter()
        found = results(llama, run, trains=case.trains)
        expected = expected or found
        pairs = zip(found, expected, strict=True)
        errors[name] = max(relative_error(one, other) for one, other in pairs)
        if group.rank() == 0:
            took = time.perf_counter() - start
            print(f"  {case}, {name}: first call in {took:.1f} s", flush=True)
    checked(errors)
    timed = {n: step(llama, r, trains=case.trains) for n, r in runs.items() if n != EAGER}
    timed[INDUCTOR_AGAIN] = timed[INDUCTOR]
    samples = _timed(timed, job, group)
    bound = None
    if case == CASES[0]:
        with torch.no_grad():
            sites = prefill_sites(llama, group.size())
            bound = bound_of_model(sites, samples.median(INDUCTOR), group).seconds
    return EndRow(str(case), job.rate, samples, errors, bound, sites_by_decision(target, before))


def _timed(timed: dict[str, Any], job: Job, group: dist.ProcessGroup) -> Samples:
    ranks = GroupRanks(group)
    trial = measure(timed, ranks, rounds=1, seed=0)
    rounds = round(job.seconds / sum(trial.median(name) for name in timed))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    return measure(timed, ranks, rounds=rounds, seed=1)


def known_sites(target: Any | None) -> set[str]:
    """What this process has compiled so far."""
    if target is None:
        return set()
    import overlapc

    return {site.id for site in overlapc.report().sites}


def sites_by_decision(target: Any | None, before: set[str]) -> dict[str, int]:
    """How many sites of each kind met which decision, as ``"kind decision"``."""
    if target is None:
        return {}
    import overlapc

    sites = [site for site in overlapc.report().sites if site.id not in before]
    return dict(Counter(f"{site.kind} {site.decision}" for site in sites))


def main(group: dist.ProcessGroup) -> None:
    """Measure the cases that are asked for."""
    job = Job.load(Path(sys.argv[1]))
    target = calibrated(job, group)
    for number in os.environ[NUMBERS].split(","):
        row = measure_case(CASES[int(number)], job, group, target)
        if group.rank() == 0:
            times = ", ".join(f"{n} {row.samples.median(n):.3f}" for n in row.samples.seconds)
            print(f"  {row.case} ({row.samples.rounds} rounds), s: {times}", flush=True)
            with Path(job.results).open("a") as out:
                out.write(to_json(row) + "\n")


if __name__ == "__main__":
    run_rank(main)
