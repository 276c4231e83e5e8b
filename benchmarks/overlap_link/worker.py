"""One rank of the overlap benchmark: makes the candidates of each pair and times them.

``benchmarks.overlap_link`` starts it, once per rate, on every rank.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measuring.paired import Samples, measure
from benchmarks.overlap_link.chains import CHAINS, Operands
from benchmarks.overlap_link.cuts import equal_parts
from benchmarks.overlap_link.jobs import Job
from benchmarks.overlap_link.rows import (
    BOUND,
    INDUCTOR,
    OVERLAPC,
    SERIAL,
    SERIAL_AGAIN,
    Prediction,
    Row,
    to_json,
)
from benchmarks.overlap_link.shapes import Pair
from benchmarks.processes.ranks import GroupRanks, run_rank

EQUAL_PARTS = (4, 12)
"""Splits made by hand, as a reference that needs no planner."""

OTHER_BOUND = "bound, other form"
BOUND_IN_PARTS = ("all_gather_gemm", "gemm_all_to_all", "all_to_all_gemm")
"""Chains whose collective gloo sometimes runs in one direction at a time, when it is large."""
BOUND_DEALT = ("gemm_reduce_scatter",)
"""Chains whose collective gloo runs as one that sends twice the bytes."""

MOST_ERROR = 1e-3
"""Of a float32 result, relative to the largest value: far above rounding, far below a mistake."""

MIN_ROUNDS, MAX_ROUNDS = 9, 41
"""Nine rounds are the fewest whose 95 % interval leaves an outlier out on each side."""

EXTREME_SHARE = 1 / 3
"""Of the seconds of a usual pair: an extreme enters fewer conclusions."""

Candidates = dict[str, Callable[[], torch.Tensor]]


def candidates(
    pair: Pair, operands: Operands, group: dist.ProcessGroup, target: Any | None
) -> Candidates:
    """Everything that is compared, by name; overlapc where there is a ``target``."""
    chain, x, weight = CHAINS[pair.kind], operands.x, operands.weight
    found: Candidates = {
        SERIAL: lambda: chain.serial(x, weight, group),
        SERIAL_AGAIN: lambda: chain.serial(x, weight, group),
        BOUND: lambda: chain.together(operands, group),
    }
    if pair.kind in BOUND_IN_PARTS:
        found[OTHER_BOUND] = lambda: chain.together_in_parts(operands, group)
    if pair.kind in BOUND_DEALT:
        found[OTHER_BOUND] = lambda: chain.together_quickly(operands, group)
    for parts in EQUAL_PARTS:
        rows = equal_parts(pair.shape.m, parts, chain.row_multiple(group.size()))
        found[f"{parts} parts"] = lambda rows=rows: chain.chunked(x, weight, rows, group)
    inductor = torch.compile(chain.compiled, backend="inductor", dynamic=False)
    found[INDUCTOR] = lambda: inductor(x, weight, group)
    if target is not None:
        options: dict[str, Any] = {"target": target}
        ours = torch.compile(chain.compiled, backend="overlapc", dynamic=False, options=options)
        found[OVERLAPC] = lambda: ours(x, weight, group)
    return found


def measure_pair(pair: Pair, job: Job, group: dist.ProcessGroup, target: Any | None) -> Row:
    """Warm every candidate up, compare their results, and time them in one interleaved loop."""
    torch.compiler.reset()
    operands = CHAINS[pair.kind].operands(pair.shape, group.rank(), group.size())
    found = candidates(pair, operands, group, target)
    expected = found[SERIAL]()
    # The bound computes no chain: there is nothing to compare.
    compared = {name: run for name, run in found.items() if name not in (BOUND, OTHER_BOUND)}
    errors = checked({name: relative_error(run(), expected) for name, run in compared.items()})
    seconds = job.seconds * (EXTREME_SHARE if pair.is_extreme else 1)
    samples = timed(found, operands, job, group, seconds, (MIN_ROUNDS, MAX_ROUNDS), seed=1)
    samples = with_least_bound(samples)
    prediction = predicted(pair, group, target) if target else None
    return Row(pair, samples, errors, prediction)


def checked(errors: dict[str, float]) -> dict[str, float]:
    """The errors, if every result is right: a wrong one has no time."""
    if wrong := {name: error for name, error in errors.items() if not error < MOST_ERROR}:
        raise AssertionError(f"wrong results, by relative error: {wrong}")
    return errors


def with_least_bound(samples: Samples) -> Samples:
    """The bound is the form that is quicker in the median, under one name.

    The quicker in each round would be lower than both, by noise alone.
    """
    seconds = dict(samples.seconds)
    if OTHER_BOUND in seconds:
        forms = (seconds[BOUND], seconds.pop(OTHER_BOUND))
        seconds[BOUND] = min(forms, key=statistics.median)
    return Samples(seconds)


def timed(
    found: Candidates,
    operands: Operands,
    job: Job,
    group: dist.ProcessGroup,
    seconds: float,
    limits: tuple[int, int],
    *,
    seed: int,
) -> Samples:
    """As many rounds of warm candidates as take ``seconds``, within ``limits``, after one more."""

    def before() -> None:
        operands.renew()
        time.sleep(job.rest_seconds)

    ranks = GroupRanks(group)
    trial = measure(found, ranks, rounds=1, seed=0, before=before)
    one_round = sum(trial.median(name) + job.rest_seconds for name in found)
    rounds = min(max(round(seconds / one_round), limits[0]), limits[1])
    return measure(found, ranks, rounds=rounds, seed=seed, before=before)


def plan_of(pair: Pair, target: Any) -> Any:
    """What overlapc plans for a pair in a compiled graph."""
    from overlapc.planning.search import plan, plan_gemm

    chain, shape = CHAINS[pair.kind], pair.shape
    # Only an all-to-all may come before or after its GEMM, and has to say which.
    order = {"order": "collective_first"} if pair.kind == "all_to_all_gemm" else {}
    found = plan_gemm(
        m=shape.m,
        n=shape.n,
        k=shape.k,
        collective=chain.collective,
        world_size=pair.ranks,
        dtype="float32",
        target=target,
        **order,
    )
    if pair.kind != "gemm_all_to_all":
        return found
    # That a rank sends equal numbers says nothing of the others: graphs plan for unequal ones.
    return plan(replace(found.problem, deals_unevenly=True), target)


def predicted(pair: Pair, group: dist.ProcessGroup, target: Any) -> Prediction:
    """The plan of this pair, and the schedules that its site really ran."""
    import overlapc

    plan = plan_of(pair, target)
    problem = plan.problem.resolved()
    sites = [
        site
        for site in overlapc.report().sites
        if site.plan
        and (site.plan.problem.resolved(), site.plan.rows, site.plan.by)
        == (problem, plan.rows, plan.by)
    ]
    calls = {name: count for site in sites for name, count in site.calls.items()}
    if plan.schedule != "serial" and set(calls) != {plan.schedule}:
        ran = [f"{site.plan} [{site.code}], {site.calls}" for site in overlapc.report().sites]
        raise AssertionError(f"planned {plan}, and ran {calls or ran}")
    return Prediction(
        plan.schedule,
        plan.rows,
        plan.predicted_seconds,
        plan.serial_seconds,
        f"{plan.reason} [{plan.code}]",
        calls,
        plan.by,
    )


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation, relative to the largest value that is expected."""
    return ((value - expected).abs().max() / expected.abs().max()).item()


def calibrated(job: Job, group: dist.ProcessGroup) -> Any | None:
    """This machine and link, measured; None where overlapc is left out."""
    if not job.calibration_seconds:
        return None
    import overlapc

    start = time.perf_counter()
    # Not saved where compilations look: the emulated link is not the machine's usual one.
    target = overlapc.calibrate(group, seconds=job.calibration_seconds, save=False)
    if group.rank() == 0:
        target.save(Path(job.targets) / f"{job.rate}.json")
        print(f"  calibrated in {time.perf_counter() - start:.1f} s: {target.name}")
    return target


def tuned(pair: Pair, job: Job, group: dist.ProcessGroup, target: Any | None) -> Any | None:
    """The target with the fastest of a pair's best plans, where the job has time for that."""
    if target is None:
        return None
    if not job.tuning_seconds or pair.is_extreme:
        # Ranks plan once for a target, a line and a width: of pairs that differ in k alone the
        # second would run what was planned for the first.
        m, n, k = pair.shape.m, pair.shape.n, pair.shape.k
        return replace(target, name=f"{target.name}-{m}x{n}x{k}")
    from overlapc.tuning.chains import tune_chains

    problem = plan_of(pair, target).problem
    return tune_chains([problem], group, target, seconds=job.tuning_seconds, save=False)


def told(pair: Pair, samples: Samples) -> str:
    """One line of progress."""
    times = ", ".join(
        f"{name} {statistics.median(values) * 1e3:.1f}" for name, values in samples.seconds.items()
    )
    return f"  {pair.kind} {pair.shape} ({samples.rounds} rounds), ms: {times}"


def run_pairs(
    group: dist.ProcessGroup, measure_one: Callable[[Pair, Job, Any], tuple[Samples, str]]
) -> None:
    """Do the job named on the command line; ``measure_one`` gives the line of a pair's results."""
    # The table says of each pair what was done; the warning is for those who do not look.
    warnings.filterwarnings("ignore", "overlapc rewrote none")
    job = Job.load(Path(sys.argv[1]))
    target = calibrated(job, group)
    with torch.no_grad():
        for pair in job.pairs:
            samples, line = measure_one(pair, job, tuned(pair, job, group, target))
            if group.rank() == 0:
                print(told(pair, samples))
                with Path(job.results).open("a") as results:
                    results.write(line + "\n")


def main(group: dist.ProcessGroup) -> None:
    """Measure every pair of the job."""

    def measure_one(pair: Pair, job: Job, target: Any) -> tuple[Samples, str]:
        row = measure_pair(pair, job, group, target)
        return row.samples, to_json(row)

    run_pairs(group, measure_one)


if __name__ == "__main__":
    run_rank(main)
