"""What a wave of a generated kernel takes, against a cache that is gone through tile by tile."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from overlapc.codegen import Bands
from overlapc.planning.kernel_costs import KernelCosts, PackedCosts
from overlapc.planning.problem import Problem
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, Tile, tiles_for
from tests.planning.machines import KERNELS, random_kernel, random_target
from tests.planning.simulation import panels_read, tile_places

PROBLEM = Problem(1024, 512, 96, "float32", "all_reduce", 2, kernel_sums=MOST_SUMS)


def kernel(tile: Tile, workers: int, l2_bytes: int, problem: Problem = PROBLEM) -> KernelCosts:
    """A kernel at its whole sweep, on a device of so many multiprocessors."""
    target = replace(random_target(Random(0), resident=workers), l2_bytes=l2_bytes)
    return KernelCosts(problem, target, tile, tile.sweep)


def fetched(costs: KernelCosts) -> int:
    """Bytes that a cache of this size fetches for the tiles in their order."""
    p, tile = costs.problem, costs.tiling
    places = tile_places(Bands.of((p.m,), tile.block_m), p.n // tile.block_n, tile.sweep)
    panels = (tile.block_m * p.k * p.item_bytes, tile.block_n * p.k * p.item_bytes)
    return panels_read(places, costs.workers, panels, costs.target.l2_bytes)


ALIGNED = [
    # Several waves a sweep; several sweeps a wave; waves of one column, and of half a row.
    (Tile(32, 32, 32, 4, 3, sweep=8), 16), (Tile(32, 64, 32, 4, 3, sweep=2), 64),
    (Tile(32, 32, 32, 4, 3, sweep=8), 8), (Tile(64, 16, 32, 4, 3, sweep=1), 16),
]  # fmt: skip
"""Tiles, and multiprocessors of which a sweep takes whole waves, or a wave whole sweeps."""


@pytest.mark.parametrize(("tile", "workers"), ALIGNED)
def test_what_is_read_where_nothing_stays_is_what_each_wave_fetches(tile: Tile, workers: int):
    costs = kernel(tile, workers, l2_bytes=0)
    assert costs.read_bytes == fetched(costs)


@pytest.mark.parametrize(("tile", "workers"), ALIGNED)
def test_what_is_read_where_all_stays_is_a_and_b(tile: Tile, workers: int):
    costs = kernel(tile, workers, l2_bytes=1 << 30)
    assert costs.read_bytes == fetched(costs) == (1024 + 512) * 96 * 4


@pytest.mark.parametrize(("tile", "workers"), [ALIGNED[0], *ALIGNED[2:]])
def test_where_the_rows_of_a_sweep_stay_each_sweep_reads_b_again(tile: Tile, workers: int):
    rows = tile.sweep * tile.block_m * 96 * 4
    # Beside them there is room for what a wave reads of B, but not for all of it.
    columns = workers // tile.sweep * tile.block_n * 96 * 4
    costs = kernel(tile, workers, l2_bytes=rows + columns)
    assert costs.read_bytes == fetched(costs)
    assert costs.read_bytes > (1024 + 512) * 96 * 4


def test_what_is_read_is_near_what_is_fetched_whatever_the_sizes():
    random, ratios = Random(1), []
    for _ in range(200):
        tile = Tile(*(random.choice([16, 32, 64]) for _ in range(2)), 32, 4, 3,
                    random.choice([1, 2, 4, 8]))  # fmt: skip
        m, n = (64 * random.randint(1, 30) for _ in range(2))
        problem = replace(PROBLEM, m=m, n=n)
        l2_bytes = random.choice([0, 10 ** random.randint(4, 7)])
        costs = kernel(tile, random.randint(2, 60), l2_bytes, problem)
        ratios.append(costs.read_bytes / fetched(costs))
    ratios.sort()
    assert 0.6 < ratios[10] < 1.05
    assert 0.95 < ratios[100] < 1.3
    assert 1.0 < ratios[190] < 3


@pytest.mark.parametrize("kind", KERNELS)
def test_higher_bands_read_no_more(kind: str) -> None:
    """What the search over heights relies on."""
    random = Random(2)
    for _ in range(100):
        costs = random_kernel(random, kind)
        seconds = [costs.at(height).wave_seconds for height in costs.heights]
        assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_is_never_quicker_than_the_library(kind: str) -> None:
    """On all multiprocessors; the library has more tiles to choose from."""
    random = Random(3)
    for _ in range(100):
        costs = random_kernel(random, kind)
        whole = replace(costs, target=replace(costs.target, communication_sms=0))
        least = whole.gemm(whole.problem.m)
        assert whole.ready(whole.size) >= least * (1 - 1e-12)
        assert costs.ready(costs.size) >= least * (1 - 1e-12)


H100 = Target.load("h100-nvlink")
LLAMA = Problem(8192, 8192, 3584, "bfloat16", "all_reduce", 8, kernel_sums=MOST_SUMS)


def test_terms_of_a_wave_on_a_device() -> None:
    """By hand, of the widest tile: 116 CTAs at 0.9 of 700 TFLOP/s."""
    wide = tiles_for("sm_90", "bfloat16")[0]
    costs = KernelCosts(LLAMA, H100, wide, 8)
    assert (costs.workers, costs.tiles, costs.waves) == (116, 2048, 18)
    multiplying = 2 * 128 * 256 * 3584 / (0.9 * 700e12 / 132)
    stored = 116 * 128 * 256 * 2 / 3.35e12
    assert costs.wave_seconds == pytest.approx(multiplying + 1e-6 + stored)
    # Half as wide, a tile reads more from the cache than it multiplies meanwhile.
    narrow = KernelCosts(LLAMA, H100, Tile(128, 64, 64, 8, 4), 8)
    from_l2 = 116 * (128 + 64) * 3584 * 2 / 9e12
    slow = replace(narrow, target=replace(H100, l2_bytes_per_second=3e12))
    assert slow.wave_seconds == pytest.approx(3 * from_l2 + 1e-6 + stored / 4)
    # And with little memory bandwidth, it waits for A and B.
    rates = tuple(replace(rates, memory_bytes_per_second=2e11) for rates in H100.gemm)
    starved = replace(costs, target=replace(H100, gemm=rates))
    read = (8192 + 8 * 8192) * 3584 * 2 / 18 / 2e11
    library = (2 * 8192 + 8192 * 8192 / 3584) * 3584 * 2 / 2e11 / 16
    assert starved.wave_seconds == pytest.approx(
        max(read + 1e-6 + 116 * 128 * 256 * 2 / 2e11, library)
    )


def test_whoever_reads_packed_tiles_loses_by_them() -> None:
    (tile, *_) = tiles_for("sm_90", "bfloat16")
    problem = replace(LLAMA, takes_map=True)
    packed = PackedCosts(problem, H100, tile, 8)
    expected = 0.075 * 2 * 8192 * 8192 * 2 / 3.35e12
    assert packed.reading_seconds == pytest.approx(expected)
    assert KernelCosts(problem, H100, tile, 8).reading_seconds == 0
    assert packed.sent_bytes(packed.size) == problem.sent_bytes(problem.m)


def test_packed_tiles_are_sent_whole() -> None:
    """Of 16 rows as many bytes go as of 128."""
    (tile, *_) = tiles_for("sm_90", "bfloat16")
    few, tall = (PackedCosts(replace(LLAMA, m=m, takes_map=True), H100, tile, 8) for m in (16, 128))
    assert few.sent_bytes(3) == tall.sent_bytes(3) == 3 * 128 * 256 * 2
    assert few.tiles == tall.tiles
