from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from overlapc.planning import fitting
from overlapc.planning.cost import Costs, advance
from overlapc.planning.fitting import (
    GemmSample,
    Pipeline,
    SideBySide,
    blocking_curve,
    fit_gemm,
    non_negative_fit,
    rising_curve,
    sustained_curve,
    with_group_cost,
)
from overlapc.planning.problem import Problem
from overlapc.planning.rates import GemmRates
from overlapc.planning.timelines import chunked_timeline
from tests.planning.machines import CONSUMERS, KINDS, random_target

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
    assert sustained_curve([(1, 0.01), (2, 1.0), (4, 2.0)], 4).points == (
        (1, 0.5),
        (2, 1.0),
        (4, 2.0),
    )
    # Latency stays: a small call may well be slower a byte.
    assert sustained_curve([(1, 0.9), (4, 2.0)], 4).points == ((1, 0.9), (4, 2.0))
    # What is beyond the bytes that outlast a link's savings says nothing of small calls.
    assert sustained_curve([(1, 0.1), (2, 0.2), (4, 4.0)], 2).points == (
        (1, 0.1),
        (2, 0.2),
        (4, 4.0),
    )


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
    # Nothing was sent while computing: as slow as is said, and still a number.
    stuck = SideBySide(compute_alone=1.0, link_alone=2.0, computed=1.1, sent=4.0)
    assert stuck.link_slowdown == fitting.MOST_SLOWDOWN


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_group_is_found_again(kind: str) -> None:
    random = Random(3)
    collective, order = KINDS[kind]
    name = "consumer_issue_seconds" if kind in CONSUMERS else "issue_seconds"
    for _ in range(30):
        target = random_target(random)
        links = tuple(replace(link, issue=None) for link in target.links)
        target = replace(target, links=links)
        problem = Problem(16 * 32, 256, 256, "float32", collective, 2, order=order)
        seconds = random.uniform(1e-4, 1e-2)
        true = replace(
            target,
            links=tuple(
                replace(link, **{name: seconds}) if link.collective == collective else link
                for link in links
            ),
        )
        events = chunked_timeline(Costs(problem, true), (32,) * 16)
        computed = sum(e.end - e.start for e in events if e.lane == "compute")
        found = with_group_cost(target, Pipeline(problem, 32, computed)).link(problem)
        assert getattr(found, name) == pytest.approx(seconds, rel=1e-3)
        assert [link for link in links if link.collective != collective] == [
            link for link in true.links if link.collective != collective
        ]
        # A pipeline that ran faster than predicted does not make calls free.
        quick = with_group_cost(true, Pipeline(problem, 32, computed / 2)).link(problem)
        assert getattr(quick, name) == pytest.approx(seconds, rel=1e-3)


def test_a_start_that_blocks_for_longer_the_more_it_moves_is_seen() -> None:
    sizes = [1 << bit for bit in range(12, 25)]
    copied = [(size, 2e-5 + size / 2.7e9) for size in sizes]
    curve = blocking_curve(copied)
    assert curve is not None
    assert curve.seconds(1 << 22) == pytest.approx(2e-5 + (1 << 22) / 2.7e9, rel=1e-3)
    queued = [(size, 4e-5) for size in sizes]
    assert blocking_curve(queued) is None
    # A single start that something else delayed is no law.
    for place in range(len(sizes)):
        disturbed = list(queued)
        disturbed[place] = (sizes[place], 5e-3)
        assert blocking_curve(disturbed) is None
    assert blocking_curve([(size, 1e-6 + size / 1e12) for size in sizes]) is None
