from __future__ import annotations

from itertools import pairwise
from math import exp, log
from random import Random

import pytest

from overlapc.planning.curve import Curve
from overlapc.planning.rates import GemmRates, Link
from tests.planning.machines import random_curve


def test_a_curve_goes_through_its_points() -> None:
    random = Random(0)
    for _ in range(200):
        curve = random_curve(random)
        for size, seconds in curve.points:
            assert curve.seconds(size) == pytest.approx(seconds, abs=1e-9)


def test_between_points_it_is_straight_in_logarithms() -> None:
    random = Random(1)
    for _ in range(200):
        curve = random_curve(random)
        for (x_0, y_0), (x_1, y_1) in pairwise(curve.points):
            share = random.random()
            size = exp((1 - share) * log(x_0) + share * log(x_1))
            expected = exp((1 - share) * log(y_0) + share * log(y_1))
            assert curve.seconds(size) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_outside_it_keeps_the_latency_and_the_bandwidth() -> None:
    curve = Curve(((1000, 2e-3), (9000, 5e-3)))
    assert curve.seconds(1) == curve.seconds(999) == 2e-3
    assert curve.seconds(90_000) == pytest.approx(5e-2)
    # The first 1000 bytes were free: the others tell the bandwidth.
    credit = Curve(((1000, 1e-5), (2000, 1e-3)))
    assert credit.seconds(12_000) == pytest.approx(1e-3 + 10 * 0.99e-3)
    assert Curve(((1000, 1e-3),)).seconds(5000) == pytest.approx(5e-3)
    assert curve.seconds(0) == 0.0


@pytest.mark.parametrize(
    "points",
    [(), ((0, 1.0),), ((8, 0.0),), ((8, 1.0), (8, 2.0)), ((9, 1.0), (8, 2.0)), ((8, -1.0),)],
)
def test_a_curve_refuses_what_is_none(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ValueError, match="curve"):
        Curve(points)


def test_gemm_of_a_cpu_is_launch_and_packing_and_work() -> None:
    rates = GemmRates("float32", 1e11, 1e-5, pack_bytes_per_second=1e10, tile_rows=16)
    pack = 512 * 256 * 4 / 1e10
    for rows, computed in ((1, 16), (16, 16), (17, 32), (100, 112)):
        expected = 1e-5 + pack + 2 * computed * 256 * 512 / 1e11
        assert rates.seconds(rows, 256, 512, 4) == pytest.approx(expected)


def test_gemm_of_a_gpu_is_waves() -> None:
    rates = GemmRates("bfloat16", 1e14, 0.0, tile_rows=128, tile_columns=256, resident=100)
    wave = 100 * 2 * 128 * 256 * 1024 / 1e14
    # 4 tiles a row of tiles: 25 rows of tiles fill a wave.
    for rows, waves in ((1, 1), (25 * 128, 1), (25 * 128 + 1, 2), (50 * 128, 2)):
        assert rates.seconds(rows, 1024, 1024, 2) == pytest.approx(waves * wave)


def test_gemm_is_never_faster_than_memory() -> None:
    rates = GemmRates("float32", 1e15, 0.0, memory_bytes_per_second=1e9)
    moved = (8 * 32 + 32 * 64 + 8 * 64) * 4
    assert rates.seconds(8, 64, 32, 4) == pytest.approx(moved / 1e9)
    assert rates.seconds(8, 64, 32, 4, extra_bytes=1000) == pytest.approx((moved + 1000) / 1e9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flops_per_second": 0.0},
        {"flops_per_second": float("nan")},
        {"launch_seconds": -1.0},
        {"pack_bytes_per_second": -1.0},
        {"memory_bytes_per_second": 0.0},
        {"tile_rows": 0},
        {"resident": 0},
    ],
)
def test_rates_refuse_what_is_none(wrong: dict) -> None:
    with pytest.raises(ValueError, match="float32"):
        GemmRates(**{"dtype": "float32", "flops_per_second": 1.0, "launch_seconds": 0.0, **wrong})


def test_another_group_size_follows_a_ring() -> None:
    latency, bandwidth = 1e-5, 1e9

    def ring(p: int, size: float) -> float:
        return 2 * (p - 1) * (latency + size / p / bandwidth)

    curve = Curve(tuple((1 << bit, ring(4, 1 << bit)) for bit in range(8, 28)))
    link = Link("all_reduce", 4, curve, curve)
    for p in (2, 3, 4, 8, 64):
        for size in (1 << 14, 1 << 20, 1 << 22):
            # Off the measured points, the log-line is not the straight line.
            assert link.scaled(curve, size, p) == pytest.approx(ring(p, size), rel=0.03)


def test_a_link_refuses_what_is_none() -> None:
    curve = Curve(((1, 1.0),))
    for collective, size, issue in (
        ("gossip", 2, 0.0),
        ("all_reduce", 1, 0.0),
        ("all_reduce", 2, -1.0),
    ):
        with pytest.raises(ValueError, match=r"collective|ranks|negative"):
            Link(collective, size, curve, curve, issue)
