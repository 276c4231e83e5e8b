"""Tuning chains over real gloo ranks: which plans run, how they are compared, what is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from overlapc.errors import ProblemError, TargetError
from overlapc.planning.candidates import top_plans
from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.planning.target import Target, stored_path
from overlapc.planning.tuned import TunedPlan
from overlapc.reporting.records import Report
from overlapc.runtime.trials import Trial
from overlapc.tuning import tune_chains
from tests.ranks import Ranks
from tests.reporting.examples import make_site
from tests.targets import SLOW_LINK, machine

CHAINS = (
    ("all_reduce", "", ""),
    ("reduce_scatter", "", ""),
    ("all_gather", "", ""),
    ("all_to_all", "gemm_first", "float64"),
    ("all_to_all", "collective_first", ""),
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def three() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    ranks.close()


def chains(world_size: int) -> list[Problem]:
    m = 96 * world_size
    return [
        Problem(m, 128, 64, "float32", name, world_size, order=order, sent_dtype=sent)
        for name, order, sent in CHAINS
    ]


def bytes_started(rank: int, problem: Problem, rows: Sequence[int]) -> tuple[list[int], Any]:
    """Bytes, whole on one rank, of every collective that a trial starts, in their order."""
    trial = Trial(problem, dist.group.WORLD, torch.device("cpu"))
    sender, started = trial._sender, []
    start = sender.start

    def spy(group: Any, out: torch.Tensor, sent: torch.Tensor, *sizes: Any) -> dist.Work:
        started.append(max(out.nbytes, sent.nbytes))
        return start(group, out, sent, *sizes)

    sender.start = spy
    run = trial.run(rows)
    return started, run


@pytest.mark.parametrize("ranks", ["pair", "three"])
def test_a_trial_sends_what_is_planned(ranks: str, request: pytest.FixtureRequest) -> None:
    group: Ranks = request.getfixturevalue(ranks)
    for problem in chains(group.size):
        for parts in ((96,), (32, 64), (16, 16, 64)):
            rows = [part * group.size for part in parts]
            for started, run in group.run(bytes_started, problem, rows):
                assert started == [problem.sent_bytes(count) for count in rows]
                assert 0 < run.computing <= run.seconds


def tuned_by(
    rank: int, problems: Any, favourite: tuple[int, ...], target: Target, save: bool = False
) -> tuple[Target, list[tuple[int, ...]]]:
    """Tune with times that are made up: rank 1 takes longer, ``favourite`` is the quickest."""
    ran: list[tuple[int, ...]] = []

    def run(problem: Problem, rows: Sequence[int]) -> float:
        ran.append(tuple(rows))
        return (1.0 if tuple(rows) == favourite else 2.0) + rank * len(rows)

    # Others than rank 0 come with other chains and another target, and get rank 0's.
    if rank:
        problems, target = [], machine("other", 1e3)
    return tune_chains(problems, target=target, run=run, seconds=0.1, save=save), ran


def test_the_fastest_on_the_slowest_rank_is_kept(pair: Ranks) -> None:
    (problem, *_) = chains(2)
    plans = top_plans(problem, SLOW_LINK)
    by_groups = sorted((plan.rows for plan in plans), key=len)
    assert len(by_groups) == 3
    assert by_groups[0] == (problem.m,)
    # Two groups cost rank 1 two seconds more: 1 + 2 against 2 + 1.
    (target, ran), (other, _) = pair.run(tuned_by, [problem], by_groups[1], SLOW_LINK)
    assert other == target
    (tuned,) = target.tuned
    assert tuned.problem == problem.resolved()
    assert tuned.rows == (problem.m,), "serial wins a tie"
    # Interleaved: after the warm-up no plan always runs first, and each runs as often.
    rounds = [ran[i : i + 3] for i in range(0, len(ran), 3)]
    assert len(rounds) > 5
    assert all(sorted(each, key=len) == by_groups for each in rounds)
    assert len({each[0] for each in rounds[1:]}) == 3


def test_a_cut_that_wins_is_what_is_planned(pair: Ranks) -> None:
    problem = chains(2)[2]
    rows = max((plan.rows for plan in top_plans(problem, SLOW_LINK)), key=len)
    known = replace(SLOW_LINK, tuned=(TunedPlan(problem.resolved(), (problem.m,), 1.0),))
    (target, _), _ = pair.run(quick_only, problem, rows, known)
    assert target.tuned == (TunedPlan(problem.resolved(), rows, 1.0),)
    assert (plan(problem, target).rows, plan(problem, target).code) == (rows, "measured_best")


def quick_only(rank: int, problem: Problem, rows: tuple[int, ...], target: Target) -> Any:
    def run(problem: Problem, tried: Sequence[int]) -> float:
        return 1.0 if tuple(tried) == rows else 2.0

    return tune_chains([problem], target=target, run=run, seconds=0.1, save=False), None


def test_chains_of_a_report_are_run_for_real(pair: Ranks) -> None:
    planned = [plan(problem, SLOW_LINK) for problem in chains(2)]
    elsewhere = plan(chains(4)[0], SLOW_LINK)
    sites = [
        make_site(id=f"f.{index}", kind=each.problem.kind, plan=each)
        for index, each in enumerate([*planned, planned[0], elsewhere])
    ]
    report = Report([*sites, make_site(id="r", decision="refused", code="other")])
    (target, taken), (other, _) = pair.run(tuned_for_real, report)
    assert target == other
    assert [t.problem for t in target.tuned] == [p.problem.resolved() for p in planned]
    assert all(0 < tuned.seconds < 5 for tuned in target.tuned)
    assert taken < 40
    for made in planned:
        assert plan(made.problem, target).code == "measured_best"


def tuned_for_real(rank: int, report: Report) -> tuple[Target, float]:
    start = time.perf_counter()
    target = tune_chains(report, target=SLOW_LINK, seconds=0.5, save=False)
    return target, time.perf_counter() - start


def test_it_is_stored_for_the_group(pair: Ranks) -> None:
    problem = chains(2)[0]
    for stored in pair.run(stored_after, problem):
        assert stored.name == "cpu-gloo-2"
        assert [tuned.problem for tuned in stored.tuned] == [problem.resolved()]


def stored_after(rank: int, problem: Problem) -> Target:
    tuned_by(rank, [problem], (1,), SLOW_LINK, save=True)
    dist.barrier()
    return Target.load(stored_path("cpu-gloo-2"))


@pytest.mark.parametrize(
    ("problems", "target", "error"),
    [
        ([], SLOW_LINK, ProblemError),
        (chains(4), SLOW_LINK, ProblemError),
        (chains(2)[:1], replace(SLOW_LINK, links=()), TargetError),
    ],
)
def test_nothing_to_tune_is_an_error_on_every_rank(
    pair: Ranks, problems: list[Problem], target: Target, error: type[Exception]
) -> None:
    assert pair.run(error_of, problems, target) == [error.__name__] * 2


def error_of(rank: int, problems: list[Problem], target: Target) -> str:
    try:
        tuned_by(rank, problems, (1,), target)
    except (ProblemError, TargetError) as error:
        return type(error).__name__
    return ""
