"""The plot of prediction errors: its numbers, and that it can be drawn again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measuring.paired import Samples
from benchmarks.measuring.results import write_results
from benchmarks.overlap_link.prediction_plot import NAME, cumulative, main, ratios, within_span
from benchmarks.overlap_link.rows import Prediction, Row, to_json
from benchmarks.overlap_link.shapes import LARGE, TINY, Pair
from overlapc.errors import CommandError

PLAN = Prediction("chunked", (512, 512), 0.19, 0.3, "it pays [overlaps]", {"chunked": 9})


def row(predicted: float, kind: str = "gemm_all_reduce", *, is_extreme: bool = False) -> Row:
    shape = TINY if is_extreme else LARGE
    samples = Samples({"serial": (3.0,), "overlapc": (2.0,)})
    prediction = replace(PLAN, seconds=predicted)
    return Row(Pair(shape, "1gbit", is_extreme, kind), samples, {}, prediction)


ROWS = [row(2.1), row(1.8), row(2.2, "all_gather_gemm"), row(0.2, is_extreme=True)]


def test_ratios_are_by_chain_and_leave_extremes_out() -> None:
    usual = ratios([*ROWS, replace(row(1.0), prediction=None)])
    assert usual["gemm_all_reduce"] == pytest.approx([0.9, 1.05])
    assert usual["all_gather_gemm"] == pytest.approx([1.1])
    assert ratios(ROWS, extremes=True)["gemm_all_reduce"] == pytest.approx([0.1, 0.9, 1.05])


def test_the_curve_rises_to_one_over_deviations_of_both_signs() -> None:
    deviations, shares = cumulative([0.9, 1.05, 1.2])
    assert deviations == pytest.approx([0.05, 0.1, 0.2])
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])


def test_what_is_far_off_stands_at_the_ends() -> None:
    assert within_span([0.1, 1.0, 3.0]) == [0.8, 1.0, 1.2]


def test_the_plot_is_the_same_each_time_and_another_for_other_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, rows in (("one", ROWS), ("two", ROWS[:2])):
        write_results(tmp_path, name, {}, [to_json(r) for r in rows], "")
    assert main([str(tmp_path / "one.json")]) == 0
    first = (tmp_path / NAME).read_text()
    assert main([str(tmp_path / "one.json")]) == 0
    assert (tmp_path / NAME).read_text() == first
    assert main([str(tmp_path / "two.json")]) == 0
    assert (tmp_path / NAME).read_text() != first
    assert first.startswith("<?xml")


def test_results_without_predictions_are_refused(tmp_path: Path) -> None:
    rows = [replace(row(1.0), prediction=None)]
    write_results(tmp_path, "none", {}, [to_json(r) for r in rows], "")
    with pytest.raises(CommandError, match="holds a prediction"):
        main([str(tmp_path / "none.json")])
