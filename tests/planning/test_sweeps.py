"""Which sweep a kernel is planned with, against a cache that is gone through step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random
from statistics import mean

import pytest

from overlapc.codegen import Bands
from overlapc.planning.candidates import plan_in_another_order
from overlapc.planning.kernel_costs import KernelCosts, kernel_costs
from overlapc.planning.problem import Problem
from overlapc.planning.search import plan, plan_rows
from overlapc.planning.signaled import best_cut_of, ranked, reachable_tiles, signaled_cuts
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, SWEEP, SWEEPS, Tile
from overlapc.planning.tuned import TunedPlan
from tests.planning.simulation import panels_read, tile_places
from tests.planning.test_signaled import reads_much

A100, H100 = Target.load("a100-nvlink"), Target.load("h100-nvlink")
SQUARE, WIDE = Tile(128, 128, 32, 8, 3), Tile(128, 256, 64, 8, 4)
PROBLEM = Problem(8192, 4096, 4096, "bfloat16", "all_reduce", 4, kernel_sums=MOST_SUMS)
STEPS = 4
"""Along k, after each of which the cache drops what does not fit."""


def fetched(kernel: KernelCosts, groups: Sequence[int]) -> int:
    """Bytes that a cache of this size fetches for the tiles of these groups in their order."""
    p, tile = kernel.problem, kernel.tiling
    rows = (p.m,) if kernel.by == "tiles" else groups
    places = tile_places(Bands.of(rows, tile.block_m), -(-p.n // tile.block_n), tile.sweep)
    panels = (tile.block_m * p.k * p.item_bytes, tile.block_n * p.k * p.item_bytes)
    return panels_read(places, kernel.workers, panels, kernel.target.l2_bytes, STEPS)


def kernels_of(problem: Problem, target: Target, tile: Tile, by: str = "rows"):
    return kernel_costs(by, problem, target, tile).swept


def random_groups(random: Random, kernel: KernelCosts) -> list[int]:
    """Of rows, which end anywhere between tiles."""
    unit, m = kernel.unit, kernel.problem.m
    ends = sorted({unit * random.randint(1, max(1, m // unit - 1)) for _ in range(4)})
    ends = [0, *(end for end in ends if end < m), m]
    return [end - start for start, end in pairwise(ends)]


@cache
def cases() -> list[tuple[tuple[KernelCosts, ...], list[int], list[int]]]:
    """A kernel with each sweep, its groups, and what of A and B is fetched with each."""
    random, found = Random(1), []
    for _ in range(100):
        m, n = (128 * random.choice([8, 16, 32, 48, random.randint(4, 48)]) for _ in range(2))
        k = random.choice([512, 1024, 2048, 4096, 8192, 14336])
        target = replace(
            random.choice([A100, H100]),
            l2_bytes=random.choice([6, 24, 40, 50]) << 20,
            communication_sms=random.choice([8, 16, 60, 92]),
        )
        tile = random.choice([SQUARE, WIDE, Tile(64, 256, 64, 8, 4), Tile(128, 64, 64, 4, 3)])
        kernels = kernels_of(replace(PROBLEM, m=m, n=n, k=k), target, tile)
        groups = random.choice([[m], random_groups(random, kernels[0])])
        found.append((kernels, groups, [fetched(kernel, groups) for kernel in kernels]))
    return found


def losses() -> tuple[list[float], list[float]]:
    """What the sweep that is predicted to read least fetches over the least of any, and what is
    predicted of all over what is fetched; ascending."""
    chosen, ratios = [], []
    for kernels, groups, reads in cases():
        predicted = [kernel.bytes_read_in(groups) for kernel in kernels]
        chosen.append(reads[predicted.index(min(predicted))] / min(reads))
        ratios += [its / real for its, real in zip(predicted, reads, strict=True)]
    return sorted(chosen), sorted(ratios)


def is_right() -> bool:
    chosen, ratios = losses()
    is_known = mean(chosen) < 1.01 and chosen[95] < 1.02
    return is_known and ratios[10] > 0.9 and ratios[450] < 1.4


def test_the_sweep_that_reads_least_is_known_before_anything_runs() -> None:
    assert is_right()
    usual = SWEEPS.index(SWEEP)
    always = sorted(reads[usual] / min(reads) for _, _, reads in cases())
    assert mean(always) > 1.08
    assert always[90] > 1.3


WRONG = {
    "A is read once": ("_a_times", lambda costs, sweep: 1),
    "A is read by every wave": (
        "_a_times",
        lambda costs, sweep: -(-sweep * costs.row_tiles // costs.workers),
    ),
    "B is read once": ("_b_times", lambda costs, sweep, sweeps: 1),
    "B never stays": ("_b_times", lambda costs, sweep, sweeps: min(sweeps, costs.waves)),
    "a wave is no more than a sweep": ("_held", lambda costs, sweep: sweep),
    "bands are no end of a sweep": ("bytes_read_in", lambda costs, groups: costs.read_bytes),
}


@pytest.mark.parametrize(("name", "wrong"), WRONG.values(), ids=WRONG)
def test_a_wrong_model_of_the_cache_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: object
) -> None:
    monkeypatch.setattr(KernelCosts, name, wrong)
    assert not is_right()


DECIDED = {
    "all of B stays beside four tile rows": (
        replace(PROBLEM, m=12288, n=4096, k=3584), A100, SQUARE, 4,
    ),
    "nothing stays, and a wave is squarest": (
        replace(PROBLEM, m=8192, n=8192, k=28672), H100, WIDE, 16,
    ),
    "few multiprocessors": (
        replace(PROBLEM, m=8192, n=8192, k=28672), replace(H100, communication_sms=116), SQUARE, 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("problem", "target", "tile", "sweep"), DECIDED.values(), ids=DECIDED)
def test_low_sweeps_win_here_and_tall_ones_there(
    problem: Problem, target: Target, tile: Tile, sweep: int
) -> None:
    kernels, groups = kernels_of(problem, target, tile), [problem.m]
    best = min(kernels, key=lambda kernel: kernel.bytes_read_in(groups)).bytes_read_in(groups)
    assert ranked(kernels, groups)[0].tiling.sweep == sweep
    by_sweep = {kernel.tiling.sweep: fetched(kernel, groups) for kernel in kernels}
    assert by_sweep[sweep] == pytest.approx(best, rel=0.05)
    assert by_sweep[sweep] < 1.05 * min(by_sweep.values())
    assert by_sweep[SWEEP] > 1.15 * by_sweep[sweep]


def test_where_memory_is_what_waves_wait_for_the_sweep_makes_a_plan_quicker() -> None:
    (rates,) = (rates for rates in H100.gemm if rates.dtype == "bfloat16")
    slow = replace(H100, gemm=(replace(rates, memory_bytes_per_second=4e11),))
    problem = replace(PROBLEM, m=8192, n=8192, k=28672)
    kernels = kernels_of(problem, slow, WIDE)
    alone = {kernel.tiling.sweep: best_cut_of([kernel]).seconds for kernel in kernels}
    best = best_cut_of(kernels)
    assert best.tile is not None
    assert best.seconds == alone[best.tile.sweep] == min(alone.values())
    assert best.seconds < 0.98 * alone[SWEEP]


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter", "in blocks", "packed"])
def test_no_other_sweep_is_quicker(kind: str) -> None:
    """Mutants: groups of the first kernel that has bands so high; rank by what is read alone."""
    random, differ = Random(4), 0
    for _ in range(40):
        costs = reads_much(random, kind)
        l2_bytes = random.choice([0, 10 ** random.randint(4, 6)])
        costs = replace(costs, target=replace(costs.target, l2_bytes=l2_bytes))
        kernels = costs.swept
        each = [best_cut_of([kernel]).seconds for kernel in kernels]
        assert best_cut_of(kernels).seconds == pytest.approx(min(each), rel=1e-12)
        assert costs.bound() <= min(each) * (1 + 1e-12)
        differ += min(each) < max(each) * 0.99
    assert differ > 5


def test_where_nothing_tells_sweeps_apart_it_is_the_usual_one() -> None:
    small = replace(PROBLEM, m=2048, n=1024, k=256)
    for cut in signaled_cuts(small, H100):
        assert cut.tile is not None
        assert cut.tile.sweep == SWEEP


def test_any_number_of_tile_rows_is_packed_with_a_sweep_that_divides_it() -> None:
    problem = replace(PROBLEM, m=19 * 128, takes_map=True)
    for m, sweeps in ((10, {1, 2, 16}), (19, {1}), (24, {1, 2, 4, 8}), (7, {1, 8, 16})):
        its = replace(problem, m=m * 128 - 5)
        kernels = kernels_of(its, H100, WIDE, "tiles")
        assert {kernel.tiling.sweep for kernel in kernels} == sweeps
        cut = best_cut_of(kernels)
        assert cut.tile is not None
        assert cut.tile.sweep in sweeps
        assert its.is_cut_by(cut.rows, "tiles", cut.tile)
        for sweep in {*SWEEPS} - sweeps:
            assert not its.is_cut_by(cut.rows, "tiles", cut.tile.swept(sweep))


def test_equal_problems_have_equal_sweeps_and_those_left_count() -> None:
    """All ranks plan alike; with other multiprocessors left, the sweep is picked again."""
    problem = replace(PROBLEM, m=8192, n=8192, k=28672)
    made, again = (plan(replace(problem), H100, "signaled") for _ in range(2))
    assert made == again
    sweeps = set()
    for sms in (16, 100, 124):
        target = replace(H100, communication_sms=sms)
        sweeps.add(ranked(kernels_of(problem, target, WIDE), [problem.m])[0].tiling.sweep)
    assert len(sweeps) > 1


def test_another_order_of_a_plan_is_its_groups_with_the_next_best_sweep() -> None:
    made = plan_rows(PROBLEM, H100, (2048, 6144), tile=WIDE)
    other = plan_in_another_order(made, H100)
    assert other is not None
    assert other.tile is not None
    assert (other.rows, other.by, other.tile.configuration) == (made.rows, made.by, WIDE)
    assert other.tile.sweep != SWEEP
    first = ranked(kernels_of(PROBLEM, H100, WIDE), made.rows)[0].tiling
    best = plan_rows(PROBLEM, H100, made.rows, tile=first)
    second = plan_in_another_order(best, H100)
    assert second is not None
    assert second.tile != first
    third = plan_in_another_order(second, H100)
    assert third is not None
    assert third.tile == first


def test_bands_of_one_tile_row_have_one_order() -> None:
    few = replace(PROBLEM, m=256)
    assert plan_in_another_order(plan_rows(few, H100, (128, 128), tile=WIDE), H100) is None
    assert plan_in_another_order(plan(PROBLEM, H100, "chunked"), H100) is None
    two = plan_in_another_order(plan_rows(few, H100, (256,), tile=WIDE), H100)
    assert two is not None
    assert two.tile == WIDE.swept(1)


def test_a_kernel_that_won_with_any_sweep_is_compiled_ahead() -> None:
    tuned = TunedPlan(PROBLEM.resolved(), (4096, 4096), 1e-2, tile=WIDE.swept(2))
    target = replace(H100, tuned=(tuned,))
    assert reachable_tiles(PROBLEM, target, "auto") == (WIDE,)
    assert plan(PROBLEM, target).tile == WIDE.swept(2)
