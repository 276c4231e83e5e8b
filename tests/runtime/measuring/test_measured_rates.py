"""What calibration over real gloo ranks measures, whatever machine it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from overlapc.calibration import calibrate
from overlapc.planning.problem import COLLECTIVES
from overlapc.planning.search import plan_gemm
from overlapc.planning.target import Target, stored_path
from overlapc.runtime.measuring import bench as measuring
from overlapc.runtime.measuring import link_curves
from tests.ranks import Ranks

pytestmark = pytest.mark.alone
SECONDS = 1.0
REST_SECONDS = 5e-3
"""Before each timed collective: a quarter of what is usual, for there are hundreds."""
SLACK = 30.0
"""Beyond the seconds asked for, on a machine that does other things too."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def calibrated(rank: int, *collectives: str) -> tuple[Target, list[tuple[str, float]], float, bool]:
    told: list[tuple[str, float]] = []
    start = time.perf_counter()
    with (
        mock.patch.object(measuring, "REST_SECONDS", REST_SECONDS),
        mock.patch.object(link_curves, "REST_SECONDS", REST_SECONDS),
    ):
        target = calibrate(
            collectives=collectives,
            seconds=SECONDS,
            save=False,
            progress=lambda stage, done: told.append((stage, done)),
        )
    taken = time.perf_counter() - start
    return target, told, taken, stored_path(target.name).exists()


@pytest.fixture(scope="module")
def of_all(pair: Ranks) -> list[Any]:
    """What each rank found of all collectives."""
    return pair.run(calibrated, *COLLECTIVES)


def test_all_ranks_hold_one_target_that_plans(of_all: list[Any]) -> None:
    (target, told, taken, stored), (other, *_) = of_all
    assert other == target
    assert other.fingerprint == target.fingerprint
    assert taken < SECONDS + SLACK
    assert not stored
    assert [stage for stage, _ in told][-1] == "done"
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert (target.name, target.is_measured) == ("cpu-gloo-2", True)
    assert [link.collective for link in target.links] == list(COLLECTIVES)
    for link in target.links:
        assert link.world_size == 2
        assert link.alone.points[0][0] == 4096
        assert link.alone.points[-1][0] >= 1 << 20
        for curve in (link.alone, link.queued):
            seconds = [seconds for _, seconds in curve.points]
            assert seconds == sorted(seconds)
        assert link.issue_seconds < 0.05
        assert link.consumer_issue_seconds < 0.05
    # One core and one socket: wide bounds that a wrong unit or a wrong term would still break.
    (rates,) = target.gemm
    assert 1e9 < rates.flops_per_second < 1e13
    assert rates.pointwise_bytes_per_second is not None
    assert 1e8 < rates.pointwise_bytes_per_second < 1e12
    for collective in COLLECTIVES:
        sizes = {"m": 512, "n": 512, "k": 512, "world_size": 2, "dtype": "float32"}
        plan = plan_gemm(**sizes, collective=collective, target=target)
        assert 1e-5 < plan.serial_seconds < 10


def predicted_and_measured(rank: int, target: Target) -> tuple[float, float]:
    # Of a millisecond: a longer one is never undisturbed where others compute too.
    left, right = torch.randn(96, 640), torch.randn(640, 768)
    out = torch.empty(96, 768)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        times.append(time.perf_counter() - start)
    return target.gemm[0].seconds(96, 768, 640, 4), min(times)


def test_rates_predict_a_gemm_that_was_not_measured_so(pair: Ranks, of_all: list[Any]) -> None:
    (target, *_), _ = of_all
    for predicted, measured in pair.run(predicted_and_measured, target):
        # A factor of three either way allows for other work on the machine, not for a mistake.
        assert 1 / 3 < predicted / measured < 3
