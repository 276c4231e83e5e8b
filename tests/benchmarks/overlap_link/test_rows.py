"""Conclusions from measured rows, on times whose conclusions are known."""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measuring.paired import Samples
from benchmarks.measuring.results import write_results
from benchmarks.measuring.tables import table
from benchmarks.overlap_link.options import kinds
from benchmarks.overlap_link.rows import Prediction, Row, from_json, read_rows, summarise, to_json
from benchmarks.overlap_link.shapes import (
    COLLECTIVES,
    DECODE,
    FAST,
    KINDS,
    LARGE,
    LOOPBACK,
    MODELS,
    TINY,
    Pair,
    Shape,
    pairs,
)
from benchmarks.overlap_link.table import markdown
from benchmarks.processes.link import bits_per_second

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
    return Row(pair or Pair(LARGE, "1gbit", False), Samples(seconds), {"overlapc": 1e-7}, PLAN)


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
    extreme = Pair(TINY, "1gbit", True)
    usual = [row(seed=seed, overlapc=value) for seed, value in enumerate((0.19, 0.20, 0.24))]
    summary = summarise([*usual, row(extreme, overlapc=0.4)])
    assert summary.pairs == 3
    assert summary.shares["overlapc"] == pytest.approx(0.9, rel=0.01)
    assert (summary.slower, summary.slower_usual) == (1, 0)
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


def test_the_prediction_error_leaves_extremes_to_a_figure_of_their_own() -> None:
    usual = row(noise=0.0)
    extreme = row(Pair(TINY, "1gbit", True), noise=0.0, overlapc=0.4)
    found = summarise([usual, extreme])
    assert found.prediction_error == summarise([usual]).prediction_error
    assert usual.prediction_ratio is not None
    assert extreme.prediction_ratio is not None
    deviations = (abs(usual.prediction_ratio - 1), abs(extreme.prediction_ratio - 1))
    assert found.prediction_error_all == pytest.approx(sum(deviations) / 2)


def test_rows_of_before_there_were_other_chains_can_be_read() -> None:
    value = json.loads(to_json(row()))
    del value["kind"], value["ranks"]
    assert from_json(json.dumps(value)) == row()


def test_a_file_of_results_gives_its_rows(tmp_path: Path) -> None:
    rows = [row(), row(Pair(DECODE, LOOPBACK, True, "all_gather_gemm", 4), seed=1)]
    write_results(tmp_path, "some", {"link": "none"}, [to_json(r) for r in rows], "page\n")
    assert read_rows(tmp_path / "some.json") == rows
    assert (tmp_path / "some.md").read_text() == "page\n"


def test_the_table_has_a_cell_for_every_column() -> None:
    rows = [row(), row(Pair(DECODE, LOOPBACK, True), overlapc=0.4)]
    page = markdown(rows, {"link": "emulated link"}).partition("## GEMM → all-reduce")[2]
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "1024x2048x2048 |" in lines[2]
    assert "chunked: 2x512 + 256" in lines[2]
    assert "16x2048x2048 * |" in lines[3]
    assert "slower" in lines[3]
    assert "slower" not in lines[2]
    assert "16 rows: a decode step" in page


def test_a_line_that_does_not_fit_its_table_is_noticed() -> None:
    with pytest.raises(AssertionError):
        table(["one", "two"], [["1"]])


def test_each_chain_has_a_line_and_a_table_of_its_own() -> None:
    gathers = [
        row(Pair(LARGE, "1gbit", False, "all_gather_gemm"), overlapc=value)
        for value in (0.36, 0.36, 0.20)
    ]
    page = markdown([row(), *gathers], {"link": "emulated link"})
    assert page.index("| GEMM → all-reduce | 1 |") < page.index("| all-gather → GEMM | 3 |")
    assert page.index("## GEMM → all-reduce") < page.index("## all-gather → GEMM")
    line = next(line for line in page.splitlines() if line.startswith("| all-gather → GEMM"))
    cells = [cell.strip() for cell in line.split("|")]
    assert float(cells[7]) == pytest.approx(0.5, rel=0.02)
    assert "2 of 3, all 2 of 3" in line
    assert "emulated link" in page


@pytest.mark.parametrize("kind", COLLECTIVES.values())
def test_the_shapes_of_a_chain_are_enough_and_of_named_layers(kind: str) -> None:
    shapes = [shape for _, shape in MODELS[kind]]
    assert len({(s.m, s.n, s.k) for s in shapes}) == len(shapes) >= 12
    assert all("tokens" in shape.origin for shape in shapes)
    # The first few, which is all that four ranks measure, have both rates too.
    assert len({rate for rate, _ in MODELS[kind][:3]}) == 2


SECONDS_PER_FLOP = 1 / 93e9
"""Of one core of the machine that the shapes were scaled for."""


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_compute_about_as_long_as_they_send(kind: str) -> None:
    for rate, s in MODELS[kind]:
        width = s.k if kind in ("all_gather_gemm", "all_to_all_gemm") else s.n
        # With two ranks, half of what is exchanged stays; gloo's reductions send all of it.
        share = 1 if kind in ("gemm_all_reduce", "gemm_reduce_scatter") else 1 / 2
        sends = share * s.m * width * 4 * 8 / bits_per_second(rate)
        computes = 2 * s.m * s.n * s.k * SECONDS_PER_FLOP
        assert 0.4 < computes / sends < 2.5, f"{rate} {s}: {computes:.3f} s, {sends:.3f} s"


def test_the_pairs_are_enough_and_different() -> None:
    chosen = pairs()
    assert len(set(chosen)) == len(chosen)
    for kind in COLLECTIVES.values():
        of_kind = [pair for pair in chosen if pair.kind == kind]
        assert sum(not pair.is_extreme for pair in of_kind) == 12
        assert sum(pair.rate == LOOPBACK for pair in of_kind) == 2
    assert all(pair.is_extreme for pair in chosen if pair.rate == LOOPBACK)
    rates = [pair.rate for pair in chosen]
    assert rates == sorted(rates, key=["300mbit", "1gbit", LOOPBACK].index)
    assert len(pairs(quick=True)) == 8
    assert {pair.rate for pair in pairs(quick=True)} == {FAST}
    assert str(Shape(1, 2, 3, "")) == "1x2x3"


def test_rates_that_are_asked_for_are_those_of_all_shapes() -> None:
    chosen = pairs(["all_gather_gemm"], ["2gbit", LOOPBACK], shapes=3)
    assert [pair.rate for pair in chosen] == ["2gbit"] * 7 + [LOOPBACK] * 7
    assert sum(not pair.is_extreme for pair in chosen) == 3


def test_four_ranks_have_half_the_rows_and_whole_blocks() -> None:
    chosen = pairs(KINDS, ranks=4)
    assert {pair.ranks for pair in chosen} == {4}
    assert all(pair.shape.m % 4 == 0 for pair in chosen)
    twice = {2 * pair.shape.m for pair in chosen}
    assert twice == {pair.shape.m for pair in pairs(KINDS)}
    assert all("halved" in pair.shape.origin for pair in chosen)
    whole = pairs(KINDS, ranks=4, whole_rows=True)
    over_links = [pair for pair in pairs(KINDS) if pair.rate != LOOPBACK]
    assert [pair.shape for pair in whole] == [pair.shape for pair in over_links]


def test_chains_are_named_by_their_collective_or_in_full() -> None:
    assert kinds("all_to_all,gemm_all_to_all,all_to_all_gemm") == (
        "gemm_all_to_all",
        "all_to_all_gemm",
    )
    with pytest.raises(argparse.ArgumentTypeError, match="'broadcast' is no chain"):
        kinds("all_reduce,broadcast")
