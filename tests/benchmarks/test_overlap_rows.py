"""Conclusions from measured rows, on times whose conclusions are known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.overlap_rows import Prediction, Row, from_json, summarise, to_json
from benchmarks.overlap_shapes import EXTREMES, LOOPBACK, SQUARE, Pair, Shape, pairs
from benchmarks.overlap_table import markdown
from benchmarks.paired import Samples

TIMES = {
    "serial": 0.300,
    "serial again": 0.300,
    "bound": 0.180,
    "4 parts": 0.225,
    "12 parts": 0.240,
    "inductor": 0.310,
    "overlapc": 0.200,
}
PLAN = Prediction("chunked", (512, 512, 256), 0.190, 0.305, "it pays [overlaps]", {"chunked": 9})


def row(pair: Pair | None = None, noise: float = 0.004, seed: int = 0, **changed: float) -> Row:
    """Rounds that drift together, with little noise of each candidate's own."""
    generator = random.Random(seed)
    drift = [generator.uniform(1, 1.5) for _ in range(15)]
    seconds = {
        name: tuple(value * d * generator.gauss(1, noise) for d in drift)
        for name, value in {**TIMES, **changed}.items()
    }
    return Row(pair or Pair(SQUARE, "1gbit", False), Samples(seconds), {"overlapc": 1e-7}, PLAN)


def without_overlapc(full: Row) -> Row:
    seconds = {name: times for name, times in full.samples.seconds.items() if name != "overlapc"}
    return replace(full, samples=Samples(seconds), prediction=None)


def test_ratios_point_the_right_way() -> None:
    measured = row()
    assert measured.speedup.median == pytest.approx(1.5, rel=0.01)
    assert measured.share_of_bound("overlapc") == pytest.approx(0.9, rel=0.01)
    assert measured.share_of_bound("4 parts") == pytest.approx(0.8, rel=0.01)
    predicted_over_measured = 0.190 / measured.samples.median("overlapc")
    assert measured.prediction_ratio == pytest.approx(predicted_over_measured)


@pytest.mark.parametrize(
    ("overlapc", "noise", "slower"),
    [
        (0.315, 0.002, True),  # 0.952, and surely so
        (0.303, 0.002, False),  # 0.990: within the tolerance
        (0.315, 0.2, False),  # 0.952, but it may be chance
        (0.200, 0.002, False),
    ],
)
def test_slower_means_beyond_doubt_and_tolerance(
    overlapc: float, noise: float, slower: bool
) -> None:
    assert row(noise=noise, overlapc=overlapc).is_slower == slower


def test_the_summary_counts_extremes_for_slower_pairs_only() -> None:
    extreme = Pair(EXTREMES[0], "1gbit", True)
    usual = [row(seed=seed, overlapc=value) for seed, value in enumerate((0.19, 0.20, 0.24))]
    summary = summarise([*usual, row(extreme, overlapc=0.4)])
    assert summary.pairs == 3
    assert summary.shares["overlapc"] == pytest.approx(0.9, rel=0.01)
    assert summary.slower == 1
    assert summary.worst is not None
    assert summary.worst.median == pytest.approx(0.75, rel=0.01)
    assert summary.noise < 0.01
    assert "bound" not in summary.shares


def test_the_prediction_error_is_taken_both_ways() -> None:
    measured = row(noise=0.0)
    actual = measured.samples.median("overlapc")
    both = [
        replace(measured, prediction=replace(PLAN, seconds=actual * factor))
        for factor in (0.8, 0.9, 1.1, 1.2)
    ]
    assert summarise(both).prediction_error == pytest.approx(0.15)


def test_a_run_without_overlapc_concludes_nothing_about_it() -> None:
    summary = summarise([without_overlapc(row())])
    assert (summary.worst, summary.slower, summary.prediction_error) == (None, 0, None)
    assert "overlapc was not measured" in markdown([without_overlapc(row())], {})


def test_rows_survive_being_written() -> None:
    for written in (row(), without_overlapc(row())):
        assert from_json(to_json(written)) == written


def test_the_table_has_a_cell_for_every_column() -> None:
    rows = [row(), row(Pair(EXTREMES[1], LOOPBACK, True), overlapc=0.4)]
    page = markdown(rows, {"link": "emulated link"})
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert "2048x2048x2048 |" in table[2]
    assert "chunked: 2x512 + 256" in table[2]
    assert "16x2048x2048 * |" in table[3]
    assert "slower" in table[3]
    assert "slower" not in table[2]
    assert "emulated link" in page


def test_the_pairs_are_enough_and_different() -> None:
    chosen = pairs()
    usual = [pair for pair in chosen if not pair.is_extreme]
    assert len(usual) >= 10
    assert len(set(chosen)) == len(chosen)
    assert any(pair.rate == LOOPBACK for pair in chosen)
    assert all(pair.is_extreme for pair in chosen if pair.rate == LOOPBACK)
    assert len(pairs(quick=True)) < len(chosen) / 3
    assert {pair.rate for pair in pairs(("2gbit", LOOPBACK))} == {"2gbit", LOOPBACK}
    assert len({(s.shape.m, s.shape.n, s.shape.k) for s in usual}) >= 10
    assert Shape(1, 2, 3, "").__str__() == "1x2x3"
