"""Tuning chains over real gloo ranks: which plans run, how they are compared, what is kept."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from overlapc.calibration import stored_target
from overlapc.errors import GroupError, ProblemError, TargetError
from overlapc.planning.candidates import even_plans, top_plans
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan
from overlapc.planning.signaled import signaled_cuts
from overlapc.planning.target import Target, stored_path
from overlapc.planning.tiles import MOST_SUMS, SWEEPS, Tile, tiles_for
from overlapc.planning.tuned import TRIALS, TunedPlan
from overlapc.reporting.report import Report
from overlapc.runtime.measuring import bench as measuring
from overlapc.runtime.measuring.trials import Trial
from overlapc.tuning.chains import (
    FEWEST_ROUNDS,
    FINALISTS,
    FIRST_ROUNDS,
    LAST_ROUNDS,
    MOST_ROUNDS,
    _candidates,
    tune_chains,
)
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


def bytes_started(
    rank: int, problem: Problem, counts: Sequence[int], by: str = "rows"
) -> tuple[list[int], Any]:
    """Bytes, whole on one rank, of every collective that a trial starts, in their order."""
    trial = Trial(problem, dist.group.WORLD, torch.device("cpu"))
    sender, started = trial.sender, []
    start = sender.start

    def spy(group: Any, out: torch.Tensor, sent: torch.Tensor, *sizes: Any) -> Any:
        started.append(max(out.nbytes, sent.nbytes))
        return start(group, out, sent, *sizes)

    plain = sender.start_plain

    def spy_plain(group: Any, out: torch.Tensor, sent: torch.Tensor) -> Any:
        if problem.collective == "reduce_scatter":  # of the others it starts what is spied on
            started.append(max(out.nbytes, sent.nbytes))
        return plain(group, out, sent)

    sender.start, sender.start_plain = spy, spy_plain
    run = trial.run(counts, by)
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


@pytest.mark.parametrize("ranks", ["pair", "three"])
def test_a_trial_by_columns_sends_what_is_planned(
    ranks: str, request: pytest.FixtureRequest
) -> None:
    group: Ranks = request.getfixturevalue(ranks)
    for problem in chains(group.size):
        if problem.is_consumer:
            continue
        for columns in ((100, 28), (1, 64, 63)):
            for started, run in group.run(bytes_started, problem, columns, "columns"):
                whole = [problem.sent_bytes(problem.m, count) for count in columns]
                # What cannot be dealt out evenly stays behind: fewer elements than ranks.
                least = group.size * 8 if problem.collective != "all_reduce" else 1
                assert all(x - least < y <= x for x, y in zip(whole, started, strict=True))
                assert 0 < run.computing <= run.seconds


def at_once(problems: Any, *, seconds: float = 0.0, save: bool = False, **more: Any) -> Target:
    """Tune with times that are made up, between which no link has to rest."""
    with mock.patch.object(measuring, "REST_SECONDS", 0.0):
        return tune_chains(problems, seconds=seconds, save=save, **more)


def favours_columns(rank: int, problem: Problem, target: Target) -> Any:
    def run(plan: Plan) -> float:
        return 1.0 if plan.by == "columns" else 2.0

    return at_once([problem], target=target, run=run)


def forgets(rank: int, target: Target) -> tuple[Target, list[str]]:
    said: list[str] = []
    logging.getLogger("overlapc.tuning.chains").addFilter(
        lambda r: said.append(r.getMessage()) or True
    )
    try:
        return at_once([chains(2)[0]], target=target, run=lambda plan: 1.0), said
    finally:
        logging.getLogger("overlapc.tuning.chains").filters.clear()


def test_trials_of_older_versions_go_when_the_target_is_written_again(pair: Ranks) -> None:
    """With a line that says so, once. Mutants: they stay, all others go, nothing is said."""
    first, *others = (problem.resolved() for problem in chains(2))
    since = dict(zip(others, (TRIALS, TRIALS - 1, 1, TRIALS), strict=True))
    tuned = tuple(TunedPlan(p, (p.m,), 1.0, since=format) for p, format in since.items())
    for target, said in pair.run(forgets, replace(SLOW_LINK, tuned=tuned)):
        assert [plan.problem for plan in target.tuned] == [others[0], others[3], first]
        assert ["forgets 2 trials" in line for line in said] == [True]


def test_columns_that_win_are_what_is_planned(pair: Ranks) -> None:
    """Packed again for every band of rows, the weight makes columns worth trying."""
    packing = tuple(
        replace(rates, pack_bytes_per_second=1e8, pointwise_bytes_per_second=1e12)
        for rates in SLOW_LINK.gemm
    )
    problem = replace(chains(2)[0], n=1024, cuts_columns=True)
    for target in pair.run(favours_columns, problem, replace(SLOW_LINK, gemm=packing)):
        (tuned,) = target.tuned
        assert (tuned.by, sum(tuned.rows)) == ("columns", problem.n)
        made = plan(problem, target)
        assert (made.by, made.rows, made.code) == ("columns", tuned.rows, "measured_best")


KERNEL = Problem(8192, 8192, 2048, "bfloat16", "all_reduce", 2, kernel_sums=MOST_SUMS)
"""Planned for GPUs that are not here: which plans are compared, and what is kept of them."""


def favours_tile(
    rank: int, favourite: Tile, lacking: int | None = None, slow: int = 0
) -> tuple[Target, list[Tile | None]]:
    """Tune with times that are made up, on ranks of which one may lack the favourite kernel, which
    takes longer with one sweep."""
    ran: list[Tile | None] = []

    def run(plan: Plan) -> float:
        ran.append(plan.tile)
        if plan.tile and plan.tile.configuration == favourite:
            return 1.0 + (plan.tile.sweep == slow)
        return 2.0 + 0.5 * (plan.schedule == "serial")

    def why_not(plan: Plan) -> str:
        is_favourite = plan.tile is not None and plan.tile.configuration == favourite
        return "no such kernel" if rank == lacking and is_favourite else ""

    target = Target.load("h100-nvlink")
    made = at_once([KERNEL], target=target, run=run, why_not=why_not)
    return made, ran


def test_a_tile_that_wins_is_what_is_planned(pair: Ranks) -> None:
    tiles = tiles_for("sm_90", "bfloat16")
    for target, ran in pair.run(favours_tile, tiles[2]):
        assert {tile and tile.configuration for tile in ran} == {None, *tiles}
        (tuned,) = target.tuned
        assert tuned.tile is not None
        assert (tuned.tile.configuration, tuned.seconds) == (tiles[2], 1.0)
        made = plan(KERNEL, target)
        assert (made.schedule, made.tile, made.rows) == ("signaled", tuned.tile, tuned.rows)
        assert (made.code, made.order) == ("measured_best", "band")


def test_the_kernel_that_is_quickest_is_measured_with_another_sweep(pair: Ranks) -> None:
    """And is planned with it where it wins. Mutant: finalists without it."""
    favourite = tiles_for("sm_90", "bfloat16")[0]
    (predicted,) = [
        cut.tile.sweep
        for cut in signaled_cuts(KERNEL, Target.load("h100-nvlink"))
        if cut.tile and cut.tile.configuration == favourite
    ]
    found = (
        pair.run(favours_tile, favourite, None, 0),
        pair.run(favours_tile, favourite, None, predicted),
    )
    assert all(mine == other for mine, other in found)
    for (_, ran), _ in found:
        swept = {tile.sweep for tile in ran if tile and tile.configuration == favourite}
        assert len(swept) == 2
        assert predicted in swept
    kept = [target.tuned[0].tile.sweep for (target, _), _ in found if target.tuned[0].tile]
    assert kept[0] == predicted
    assert kept[1] != predicted
    made = plan(KERNEL, found[1][0][0])
    assert (made.tile, made.code) == (favourite.swept(kept[1]), "measured_best")


def test_a_kernel_that_one_rank_lacks_is_run_on_none(pair: Ranks) -> None:
    tiles = tiles_for("sm_90", "bfloat16")
    found = pair.run(favours_tile, tiles[2], 1)
    assert found[0] == found[1]
    for target, ran in found:
        configurations = {tile.configuration for tile in ran if tile}
        assert configurations == set(tiles) - {tiles[2]}
        assert target.tuned[0].tile not in [tiles[2].swept(sweep) for sweep in SWEEPS]


def tuned_by(
    rank: int, problems: Any, favourite: tuple[int, ...], target: Target, save: bool = False
) -> tuple[Target, list[tuple[int, ...]]]:
    """Tune with times that are made up: rank 1 takes longer, ``favourite`` is the quickest."""
    ran: list[tuple[int, ...]] = []

    def run(plan: Plan) -> float:
        ran.append(plan.rows)
        return (1.0 if plan.rows == favourite else 2.0) + rank * len(plan.rows)

    # Others than rank 0 come with other chains and another target, and get rank 0's.
    if rank:
        problems, target = [], machine("other", 1e3)
    return at_once(problems, target=target, run=run, save=save), ran


def in_turns(ran: Sequence[tuple[int, ...]], plans: int) -> set[tuple[int, ...]]:
    """The plans of all rounds, of which each runs every one once, and none always first."""
    rounds = [ran[i : i + plans] for i in range(0, len(ran), plans)]
    assert all(set(each) == set(ran) and len(each) == plans for each in rounds)
    assert len({each[0] for each in rounds}) == min(plans, len(rounds))
    return set(ran)


def test_the_fastest_on_the_slowest_rank_is_kept(pair: Ranks) -> None:
    problem = replace(chains(2)[0], m=2048)
    by_groups = sorted({plan.rows for plan in _candidates(problem, SLOW_LINK)}, key=len)
    assert len(by_groups) > 1 + FINALISTS
    # Two groups cost rank 1 two seconds more: 1 + 2 against 2 + 1.
    (target, ran), (other, _) = pair.run(tuned_by, [problem], by_groups[1], SLOW_LINK)
    assert other == target
    (tuned,) = target.tuned
    assert tuned.problem == problem.resolved()
    assert tuned.rows == (problem.m,), "serial wins a tie"
    plans = len(by_groups)
    assert in_turns(ran[plans : plans * (1 + FIRST_ROUNDS)], plans) == set(by_groups)
    assert set(ran[-LAST_ROUNDS:]) == {(problem.m,)}
    afresh = ran[plans * (1 + FIRST_ROUNDS) : -LAST_ROUNDS]
    assert len(afresh) >= FEWEST_ROUNDS * (1 + FINALISTS)
    finalists = sorted(in_turns(afresh, 1 + FINALISTS), key=len)
    assert finalists[:2] == [(problem.m,), by_groups[1]]
    # Who is slower than another in the first rounds does not run again before it.
    slowest = max(len(rows) for rows in finalists)
    assert slowest <= min(len(rows) for rows in set(by_groups) - set(finalists))


def lucky_first(
    rank: int, problem: Problem, lucky: tuple[int, ...], steady: tuple[int, ...], rounds: int
) -> Target:
    """One plan is the quickest in the first ``rounds`` and the slowest later."""
    seen: Counter[tuple[int, ...]] = Counter()

    def run(plan: Plan) -> float:
        seen[plan.rows] += 1
        if plan.rows == lucky:
            return 1.0 if seen[lucky] <= rounds else 9.0
        return 2.0 if plan.rows == steady else 3.0

    return at_once([problem], target=SLOW_LINK, run=run)


def test_luck_in_the_first_rounds_does_not_win(pair: Ranks) -> None:
    problem = replace(chains(2)[0], m=2048)
    lucky, steady = (plan.rows for plan in even_plans(problem, SLOW_LINK)[:2])
    for target in pair.run(lucky_first, problem, lucky, steady, 1 + FIRST_ROUNDS):
        assert [(tuned.rows, tuned.seconds) for tuned in target.tuned] == [(steady, 2.0)]


def test_luck_against_other_finalists_is_not_predicted(pair: Ranks) -> None:
    problem = replace(chains(2)[0], m=2048)
    lucky, steady = (plan.rows for plan in even_plans(problem, SLOW_LINK)[:2])
    until_it_won = 1 + FIRST_ROUNDS + FEWEST_ROUNDS
    for target in pair.run(lucky_first, problem, lucky, steady, until_it_won):
        assert [(tuned.rows, tuned.seconds) for tuned in target.tuned] == [((problem.m,), 3.0)]


def test_a_cut_that_wins_is_what_is_planned(pair: Ranks) -> None:
    problem = chains(2)[2]
    rows = max((plan.rows for plan in top_plans(problem, SLOW_LINK)), key=len)
    known = replace(SLOW_LINK, tuned=(TunedPlan(problem.resolved(), (problem.m,), 1.0),))
    (target, _), _ = pair.run(quick_only, problem, rows, known)
    assert target.tuned == (TunedPlan(problem.resolved(), rows, 1.0),)
    assert (plan(problem, target).rows, plan(problem, target).code) == (rows, "measured_best")


def quick_only(rank: int, problem: Problem, rows: tuple[int, ...], target: Target) -> Any:
    def run(plan: Plan) -> float:
        return 1.0 if plan.rows == rows else 2.0

    return at_once([problem], target=target, run=run), None


def rounds_of(rank: int, problem: Problem, seconds: Sequence[float]) -> tuple[int, int]:
    """How often a rank that allows so many seconds runs the serial plan, and others."""
    ran: Counter[bool] = Counter()

    def run(plan: Plan) -> float:
        ran[plan.schedule == "serial"] += 1
        return 1.0

    at_once([problem], target=SLOW_LINK, run=run, seconds=seconds[rank])
    return ran[True], ran[False]


def test_the_seconds_of_the_first_rank_count(pair: Ranks) -> None:
    """The mutant in which each rank's own count leaves one alone with its rounds."""
    problem = chains(2)[0]
    for seconds, rounds in (((0.0, 1e6), FEWEST_ROUNDS), ((1e6, 0.0), MOST_ROUNDS)):
        one, other = pair.run(rounds_of, problem, seconds, timeout=60)
        assert one == other
        assert one[0] == 1 + FIRST_ROUNDS + rounds + LAST_ROUNDS


def test_chains_of_a_report_are_run_for_real(pair: Ranks) -> None:
    planned = [plan(problem, SLOW_LINK) for problem in chains(2)[1:4]]
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


def broken_on(broken: int, rank: int, folder: Path) -> None:
    """Machines of their own, of which one has a stored target that cannot be read."""
    os.environ["XDG_CACHE_HOME"] = str(folder / f"machine-{rank}")
    path = stored_path("cpu-gloo-2")
    path.parent.mkdir(parents=True, exist_ok=True)
    if rank == broken:
        path.write_text('{"overlapc_target": 99}')
    else:
        SLOW_LINK.renamed("cpu-gloo-2").save(path)


def errors_where_a_file_is_broken(
    rank: int, broken: int, folder: Path, problem: Problem
) -> tuple[list[str], float, float]:
    """What `stored_target` and `tune_chains` raise, seconds taken, and a sum that still works."""
    home, start = os.environ["XDG_CACHE_HOME"], time.perf_counter()
    broken_on(broken, rank, folder)
    said = []
    try:
        for call in (stored_target, lambda: tune_chains([problem], seconds=0.1, save=False)):
            try:
                call()
                said.append("")
            except TargetError as error:
                said.append(error.what)
    finally:
        os.environ["XDG_CACHE_HOME"] = home
    taken = time.perf_counter() - start
    total = torch.ones(1)
    dist.all_reduce(total)
    return said, taken, total.item()


def test_a_file_that_rank_0_cannot_read_is_an_error_on_every_rank(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    found = two_ranks.run(errors_where_a_file_is_broken, 0, tmp_path, chains(2)[0])
    for said, taken, total in found:
        assert len(said) == 2
        assert all("format 99" in what for what in said)
        assert taken < 20
        assert total == 2


def test_only_the_file_of_rank_0_counts(two_ranks: Ranks, tmp_path: Path) -> None:
    found = two_ranks.run(errors_where_a_file_is_broken, 1, tmp_path, chains(2)[0])
    assert [said for said, *_ in found] == [["", ""]] * 2


def error_of_no_chains(rank: int) -> str:
    try:
        tune_chains([None] if rank == 0 else [], target=SLOW_LINK, save=False)  # type: ignore[list-item]
    except GroupError as error:
        return str(error)
    return ""


def test_a_mistake_of_rank_0_is_an_error_on_every_rank(two_ranks: Ranks) -> None:
    for text in two_ranks.run(error_of_no_chains):
        assert "Rank 0 failed: AttributeError" in text
