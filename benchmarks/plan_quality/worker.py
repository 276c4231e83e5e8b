"""One rank of the plan-quality benchmark: runs fixed cuts and the plan on one executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measuring.paired import Samples
from benchmarks.overlap_link.chains import CHAINS, Operands, scattered_by_hand
from benchmarks.overlap_link.cuts import fixed_candidates
from benchmarks.overlap_link.jobs import Job
from benchmarks.overlap_link.shapes import Pair
from benchmarks.overlap_link.worker import checked, plan_of, relative_error, run_pairs, timed
from benchmarks.plan_quality.rows import PLAN, PLAN_AGAIN, QualityRow, finalists, to_json
from benchmarks.processes.ranks import run_rank
from overlapc.planning.search import plan_rows

FIRST_SHARE = 0.5
"""Of the seconds of a pair, for the rounds that choose the finalists."""

FIRST_ROUNDS = (3, 9)
FRESH_ROUNDS = (9, 25)


def run_cut(
    pair: Pair, operands: Operands, counts: Sequence[int], how: str, group: dist.ProcessGroup
) -> torch.Tensor:
    """Run a chain as it is, or in groups by rows or columns; one may still overlap a consumer."""
    chain, x, weight = CHAINS[pair.kind], operands.x, operands.weight
    if how == "serial":
        return chain.serial(x, weight, group)
    if how == "columns":
        return chain.in_columns(x, weight, counts, group)
    if pair.kind == "gemm_reduce_scatter":
        return scattered_by_hand(x, weight, counts, group, chain.quick)
    return chain.chunked(x, weight, counts, group)


def measure_quality(
    pair: Pair, job: Job, group: dist.ProcessGroup, target: Any | None
) -> QualityRow:
    """All candidates in turns, then the best of them afresh with the plan."""
    chain = CHAINS[pair.kind]
    operands = chain.operands(pair.shape, group.rank(), group.size())
    cuts = fixed_candidates(pair.shape.m, chain.row_multiple(group.size()))
    how = {name: "serial" if name == "serial" else "rows" for name in cuts}
    predicted, reason = {}, ""
    if target is not None:
        plan = plan_of(pair, target)
        known = {name: plan_rows(plan.problem, target, rows) for name, rows in cuts.items()}
        predicted = {name: found.predicted_seconds for name, found in {**known, PLAN: plan}.items()}
        reason = f"{plan.reason} [{plan.code}]"
        for name in (PLAN, PLAN_AGAIN):
            cuts[name] = tuple(plan.rows)
            how[name] = plan.by if plan.schedule == "chunked" else plan.schedule

    def runs(names: Sequence[str]) -> dict[str, Any]:
        return {
            name: lambda name=name: run_cut(pair, operands, cuts[name], how[name], group)
            for name in names
        }

    everything = runs([name for name in cuts if name != PLAN_AGAIN])
    expected = everything["serial"]()
    errors = checked({name: relative_error(run(), expected) for name, run in everything.items()})
    seconds = FIRST_SHARE * job.seconds
    first = timed(everything, operands, job, group, seconds, FIRST_ROUNDS, seed=1)
    ours = [name for name in (PLAN, PLAN_AGAIN) if name in cuts]
    best = runs([*finalists(first), *ours])
    fresh = timed(best, operands, job, group, job.seconds - seconds, FRESH_ROUNDS, seed=2)
    cuts.pop(PLAN_AGAIN, None)
    return QualityRow(pair, cuts, how.get(PLAN, ""), first, fresh, errors, predicted, reason)


def main(group: dist.ProcessGroup) -> None:
    """Measure every pair of the job."""

    def measure_one(pair: Pair, job: Job, target: Any) -> tuple[Samples, str]:
        row = measure_quality(pair, job, group, target)
        return row.fresh, to_json(row)

    run_pairs(group, measure_one)


if __name__ == "__main__":
    run_rank(main)
