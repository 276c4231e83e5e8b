"""What the cost model predicts beside what FlashOverlap publishes, bar by bar.

Its machines are stood for by shipped targets, whose GEMM rates are assumed and whose links are read
off its curves of four GPUs: a test of terms that are missing or wrong, not of their size. Left out
are all-to-alls, of which its two parts are of columns; of them signals are predicted to gain 14 to
22 % less than published, on shapes of one to ten waves.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import cache

import pytest

from benchmarks.gpu.gemm.flashoverlap import MEANS, Mean, machine
from overlapc.planning.cost import Costs
from overlapc.planning.search import bound, plan, plan_rows
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS

BARS = [mean for mean in MEANS if mean.collective != "all_to_all"]
RTX = [mean for mean in BARS if mean.device == "RTX 4090"]
A800 = [mean for mean in BARS if mean.device == "A800"]


@cache
def predicted(mean: Mean, schedule: str, target: Target) -> float:
    """The mean over the bar's shapes of the speed-up over serial."""
    found = []
    for sizes in mean.shapes:
        problem = replace(mean.problem(sizes), kernel_sums=MOST_SUMS)
        half = problem.m // 2
        seconds = {
            "two parts": lambda p, half=half: plan_rows(p, target, (half, half)).predicted_seconds,
            "bound": lambda p: bound(p, target),
        }.get(schedule, lambda p: plan(p, target, schedule).predicted_seconds)
        found.append(Costs(problem, target).serial() / seconds(problem))
    return statistics.fmean(found)


def off_two_parts() -> list[float]:
    return [
        predicted(mean, "two parts", machine(mean.device)) / mean.two_parts.mean - 1
        for mean in BARS
    ]


def test_two_parts_of_the_library_s_gemm_gain_what_was_published(monkeypatch):
    """To 2.7 % of it in the mean of twelve bars, and 4 % at most; to 3.6 % and 6 % where lost waves
    are forgotten, which is the mutant."""
    errors = list(map(abs, off_two_parts()))
    assert statistics.fmean(errors) < 0.03
    assert max(errors) < 0.045
    monkeypatch.setattr(Costs, "waves_beside", lambda *given: 0.0)
    predicted.cache_clear()
    forgotten = list(map(abs, off_two_parts()))
    predicted.cache_clear()
    assert statistics.fmean(forgotten) > 0.035
    assert max(forgotten) > 0.055


@pytest.mark.parametrize("mean", BARS, ids=str)
def test_nothing_published_is_beyond_the_bound(mean):
    assert mean.flashoverlap.mean < predicted(mean, "bound", machine(mean.device))


@pytest.mark.parametrize("mean", RTX, ids=str)
def test_signals_over_pcie_gain_about_what_was_published(mean):
    """Its kernel leaves 2 multiprocessors, as ours does there."""
    found = predicted(mean, "signaled", machine(mean.device))
    assert found == pytest.approx(mean.flashoverlap.mean, rel=0.125)


def test_signals_over_nvlink_lose_by_the_multiprocessors_that_they_leave():
    """Its GEMM holds all of them but while a collective runs, ours never holds those 16: why it is
    predicted to gain less than chunks do, and than theirs gained. With 2 left out it would not."""
    (target,) = {machine(mean.device) for mean in A800}
    assert target.communication_sms == 16

    def off(left: int) -> float:
        its = replace(target, communication_sms=left)
        return statistics.fmean(
            predicted(mean, "signaled", its) / mean.flashoverlap.mean - 1 for mean in A800
        )

    assert off(16) < -0.06
    assert 0 < off(2) < 0.1
    for mean in A800:
        assert predicted(mean, "signaled", target) < predicted(mean, "chunked", target)
