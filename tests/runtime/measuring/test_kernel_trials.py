"""Trials of generated kernels over real gloo ranks that pretend to have a GPU."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from overlapc.codegen.packing import unpack
from overlapc.errors import TrialError
from overlapc.planning.candidates import top_plans
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan_rows
from overlapc.planning.signaled import configurations
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS
from overlapc.runtime import reference
from overlapc.runtime.measuring.kernel_trials import KernelTrial
from overlapc.runtime.measuring.trials import Trials
from overlapc.runtime.ranks import patience
from overlapc.runtime.signaled.schedule import Signaled
from overlapc.runtime.sizing import problem_of
from overlapc.tuning.chains import tune_chains
from tests.ranks import Ranks
from tests.runtime.chains import chain
from tests.runtime.measuring.test_chain_trials import EPILOGUE, uncompiled
from tests.runtime.signaled.cases import TARGET, alone, error_of, recorded
from tests.runtime.signaled.pretended import SMS, pretended_gpu

GPU = replace(
    TARGET,
    device="cuda",
    gemm=tuple(replace(r, resident=SMS, tile_rows=64, tile_columns=64) for r in TARGET.gemm),
)
PROBLEMS = {
    "all_reduce": Problem(1536, 192, 24, "float32", "all_reduce", 2, kernel_sums=MOST_SUMS),
    "reduce_scatter": Problem(1536, 192, 24, "float32", "reduce_scatter", 2, kernel_sums=MOST_SUMS),
    "in blocks": Problem(
        1536, 192, 24, "float32", "reduce_scatter", 2, kernel_sums=MOST_SUMS, blocks=2
    ),
    "by columns": Problem(
        1536, 192, 24, "float32", "reduce_scatter", 2, kernel_sums=MOST_SUMS, axis=1
    ),
    "cast": Problem(
        1536, 192, 24, "float32", "all_to_all", 2, order="gemm_first", sent_dtype="bfloat16",
        kernel_sums=MOST_SUMS,
    ),
    "epilogue": problem_of(
        chain("gemm_all_reduce", EPILOGUE, GPU), [(1536, 24), (24, 192), (192,), (1536, 192)],
        [torch.float32] * 4, 2,
    ),
    "packed": Problem(
        60, 1000, 24, "float32", "all_reduce", 2, kernel_sums=MOST_SUMS, takes_map=True
    ),
}  # fmt: skip


ALWAYS = ("in blocks", "packed", "epilogue")
NAMES = [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.long) for n in PROBLEMS]


def kernel_plan(problem: Problem) -> Plan:
    return next(plan for plan in top_plans(problem, GPU) if plan.tile)


def tried(rank: int, name: str, without: int | None = None) -> tuple[float, str, list, int]:
    """Seconds, infinitely many of one that failed, what keeps it from running or why it did fail,
    which collectives were sent, and the groups."""
    problem = PROBLEMS[name]
    plan = kernel_plan(problem)
    falls_back = alone() if rank == without else nullcontext()
    soon = mock.patch.object(patience, "LOOKS_EVERY", timedelta(seconds=0.01))
    with pretended_gpu(), falls_back, uncompiled(), soon, recorded() as log:
        trials = Trials(dist.group.WORLD, torch.device("cpu"), GPU)
        why_not = trials.why_not(plan)
        try:
            seconds = trials.run(plan)
        except TrialError as error:
            seconds, why_not = math.inf, error.what
    return seconds, why_not, [who for who, *_ in log], len(plan.rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_runs_the_kernel_of_the_plan(interpreted_pair: Ranks, name: str) -> None:
    for seconds, why_not, sent, groups in interpreted_pair.run(tried, name):
        assert not why_not
        assert 0 < seconds < 60
        assert sent == ["beside"] * groups
        assert groups > 1


def test_a_rank_whose_kernel_fails_makes_the_plan_lose(interpreted_pair: Ranks) -> None:
    """However long it takes. Mutant: who waits looks at the store of the communicator beside."""
    (first, *_), (second, why, *_) = interpreted_pair.run(tried, "reduce_scatter", 1)
    assert math.isfinite(first)
    assert math.isinf(second)
    assert why


def results(rank: int, name: str) -> float:
    """The error of what a trial computes."""
    problem = PROBLEMS[name]
    trial, found = KernelTrial(problem, GPU, dist.group.WORLD, torch.device("cpu")), []
    run = Signaled.__call__

    def keeps(self: Signaled, *given: Any) -> Any:
        found.extend(run(self, *given)[0])
        return [], ""

    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signaled, "__call__", keeps)
        trial.seconds(kernel_plan(problem))
    plan = kernel_plan(problem)
    given = [t.clone() for t in trial.operands]
    (wanted,) = reference.chain(trial.spec(plan), given, problem.blocks)
    if plan.by == "tiles":
        assert plan.tile is not None
        found[0] = unpack(found[0], PackedOrder(problem.m, problem.n, plan.tile))
    return error_of(found[0], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_trial_computes_is_right(interpreted_pair: Ranks, name: str) -> None:
    """Else it would be the time of something else."""
    assert max(interpreted_pair.run(results, name)) < (1e-2 if name == "cast" else 2e-6)


def tuned(rank: int, without: int | None) -> tuple[Target, set[str]]:
    falls_back = alone() if rank == without else nullcontext()
    with pretended_gpu(), falls_back, recorded() as log:
        target = tune_chains([PROBLEMS["all_reduce"]], target=GPU, seconds=0.1, save=False)
    return target, {who for who, *_ in log}


@pytest.mark.long
def test_tuning_runs_kernels_and_takes_what_was_quicker(interpreted_pair: Ranks) -> None:
    """Which in an interpreter no kernel is, nor one that fell back."""
    for without in (None, 1):
        for target, sent in interpreted_pair.run(tuned, without):
            assert "beside" in sent
            assert [won.tile for won in target.tuned] == [None]


class Done:
    """A run that takes no time."""

    def __call__(self, operands: Any, group: Any) -> tuple[list, str]:
        return [], ""


def test_what_readers_lose_by_packed_tiles_is_part_of_a_trial() -> None:
    slow = replace(GPU.gemm[0], pointwise_bytes_per_second=1e3)
    target, problem = replace(GPU, gemm=(slow,)), PROBLEMS["packed"]
    (tile,) = configurations(problem, target)
    packed = plan_rows(problem, target, (8, 8), by="tiles", tile=tile)
    assert packed.reading_seconds == pytest.approx(0.075 * 2 * 60 * 1000 * 4 / 1e3)
    trial = KernelTrial(problem, target, None, torch.device("cpu"))  # type: ignore[arg-type]
    trial.chains["signaled", (8, 8), "tiles", tile] = SimpleNamespace(signaled=Done())  # type: ignore[assignment]
    assert packed.reading_seconds <= trial.seconds(packed) < packed.reading_seconds + 1
    assert plan_rows(problem, target, (60,), tile=tile).reading_seconds == 0


def test_uneven_ranks_are_not_tried() -> None:
    problem = replace(PROBLEMS["cast"], row_multiple=1, deals_unevenly=True)
    trial = KernelTrial(problem, GPU, None, torch.device("cpu"))  # type: ignore[arg-type]
    assert "different numbers" in trial.why_no_kernel(kernel_plan(PROBLEMS["cast"]))
