from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from overlapc.planning import fitting
from overlapc.planning.cost import Costs, advance, chunked_timeline
from overlapc.planning.fitting import (
    GemmSample,
    Pipeline,
    SideBySide,
    fit_gemm,
    non_negative_fit,
    rising_curve,
    sustained_curve,
    with_group_cost,
)
from overlapc.planning.problem import Problem
from overlapc.planning.rates import GemmRates
from tests.planning.machines import random_target

SHAPES = [(r, n, k) for r in (16, 64, 256) for n in (512, 2048) for k in (1024, 4096)]


def samples(rates: GemmRates, random: Random, disturbed: int = 0) -> list[GemmSample]:
    """Times that the rates predict, with 1 % of noise and some calls that took far too long."""
    found = [
        GemmSample(r, n, k, rates.seconds(r, n, k, 4) * random.uniform(0.99, 1.01))
        for r, n, k in SHAPES
    ]
    for index in random.sample(range(len(found)), disturbed):
        r, n, k = SHAPES[index]
        found[index] = GemmSample(r, n, k, 4 * found[index].seconds)
    return found


def worst_miss(fitted: GemmRates, rates: GemmRates) -> float:
    return max(abs(fitted.seconds(*s, 4) / rates.seconds(*s, 4) - 1) for s in SHAPES)


def worst_fit(disturbed: int) -> float:
    random = Random(0)
    worst = 0.0
    for _ in range(30):
        rates = GemmRates(
            "float32",
            flops_per_second=10 ** random.uniform(10, 12),
            launch_seconds=10 ** random.uniform(-6, -4),
            pack_bytes_per_second=10 ** random.uniform(9, 11),
        )
        shape = GemmRates("float32", 1.0, 0.0, pack_bytes_per_second=1.0)
        worst = max(worst, worst_miss(fit_gemm(shape, samples(rates, random, disturbed), 4), rates))
    return worst


def test_rates_are_found_again() -> None:
    assert worst_fit(0) < 0.03


def test_a_few_disturbed_calls_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst_fit(2) < 0.1
    monkeypatch.setattr(fitting, "REWEIGHTINGS", 1)
    assert worst_fit(2) > 0.2, "plain least squares must fail here, or the test shows nothing"


def test_waves_of_a_gpu_are_found_again() -> None:
    random = Random(1)
    rates = GemmRates("float32", 5e13, 6e-6, tile_rows=128, tile_columns=256, resident=4)
    shape = GemmRates("float32", 1.0, 0.0, tile_rows=128, tile_columns=256, resident=4)
    fitted = fit_gemm(shape, samples(rates, random), 4)
    assert fitted.pack_bytes_per_second is None
    assert worst_miss(fitted, rates) < 0.03


def test_no_rate_is_negative() -> None:
    """Times that fall with the packed bytes: least squares would make packing give time back."""
    shape = GemmRates("float32", 1.0, 0.0, pack_bytes_per_second=1.0)
    odd = [GemmSample(r, n, k, 2 * r * n * k / 1e11 + 1e-3 / (n * k)) for r, n, k in SHAPES]
    fitted = fit_gemm(shape, odd, 4)
    assert fitted.flops_per_second > 0
    assert fitted.launch_seconds >= 0
    assert non_negative_fit([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]], [4.0, 2.0, 1.0])[1] == 0.0


def test_a_rising_curve_keeps_what_rises_and_takes_the_smaller_of_what_falls() -> None:
    assert rising_curve([(4, 3.0), (1, 1.0), (2, 2.0)]).points == ((1, 1.0), (2, 2.0), (4, 3.0))
    assert rising_curve([(1, 5.0), (2, 2.0), (4, 3.0)]).points == ((1, 2.0), (2, 2.0), (4, 3.0))


def test_on_a_sustained_curve_no_call_moves_bytes_faster_than_a_larger_one() -> None:
    # A bucket of saved credit lets the small call look free.
    assert sustained_curve([(1, 0.01), (2, 1.0), (4, 2.0)]).points == ((1, 0.5), (2, 1.0), (4, 2.0))
    # Latency stays: a small call may well be slower a byte.
    assert sustained_curve([(1, 0.9), (4, 2.0)]).points == ((1, 0.9), (4, 2.0))


def test_contention_is_found_again() -> None:
    random = Random(2)
    for _ in range(200):
        c, d = random.uniform(1, 1.8), random.uniform(1, 1.5)
        link = random.uniform(0.1, 1.0)
        compute = 0.5 * link
        computed, sent = advance(0.0, link, compute, 0.0, 0.0, c, d)
        both = SideBySide(compute, link, computed, max(computed, sent))
        assert both.compute_slowdown == pytest.approx(c)
        assert both.link_slowdown == pytest.approx(d)


def test_noise_gives_no_slowdown_below_one() -> None:
    both = SideBySide(compute_alone=1.0, link_alone=2.0, computed=0.9, sent=1.8)
    assert both.compute_slowdown == both.link_slowdown == 1.0


def test_the_cost_of_a_group_is_found_again() -> None:
    random = Random(3)
    for _ in range(50):
        target = random_target(random)
        (link,) = target.links
        true = replace(target, links=(replace(link, issue_seconds=random.uniform(1e-4, 1e-2)),))
        problem = Problem(16 * 32, 256, 256, "float32", "all_reduce", 2)
        computed = chunked_timeline(Costs(problem, true), (32,) * 16)[-2].end
        found = with_group_cost(target, Pipeline(problem, 32, computed))
        seconds = found.links[0].issue_seconds
        assert seconds == pytest.approx(true.links[0].issue_seconds, rel=1e-3)
        # A pipeline that ran faster than predicted does not make calls free.
        quick = with_group_cost(true, Pipeline(problem, 32, computed / 2))
        assert quick.links[0].issue_seconds == pytest.approx(true.links[0].issue_seconds, rel=1e-3)
