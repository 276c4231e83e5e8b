"""The plot and the page of a table of linear layers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.linear.plot import curves, main, page
from overlapc.planning.linear.regions import (
    Gain,
    LinearEntry,
    LinearProblem,
    LinearTrial,
    Prediction,
    Regions,
)
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.tables import Machine

TRIALS = (
    LinearTrial(1, 4e-5, (Gain("gemv", 1.9, 2.0, 2.1), Gain("flat", 1.0, 1.25, 1.3))),
    LinearTrial(8, 5e-5, (Gain("flat", 1.2, 1.25, 1.3),)),
    LinearTrial(64, 5e-5, (Gain("flat", 0.8, 0.9, 1.0),)),
)
ENTRIES = tuple(
    LinearEntry(LinearProblem(n, 4096, "bfloat16"), Regions(1, 2, 9), TRIALS, predicted=predicted)
    for n, predicted in (
        (64, None),
        (128, Prediction("h200-nvlink", Regions(1, 3, 17), (LinearTrial(8, 2.5e-5, ()),))),
    )
)
TABLE = LinearTable(Machine("cuda", "a machine", "versions"), ENTRIES)


def test_curves_are_seconds_by_rows():
    found = curves(ENTRIES[0].trials)
    assert [rows for rows, *_ in found["library"]] == [1, 8, 64]
    assert found["gemv"] == [(1, pytest.approx(2e-5), 4e-5 / 2.1, 4e-5 / 1.9)]
    assert found["flat"][1][1] == pytest.approx(4e-5)


def test_the_page_says_what_was_chosen_where():
    chosen = re.findall(r"\| (\w+) \|$", page(replace(TABLE, entries=ENTRIES[:1])), re.MULTILINE)
    assert chosen == ["chosen", "gemv", "flat", "library"]


def test_the_page_sets_what_was_predicted_beside():
    """Mutants: the measured regions twice, rows that were not predicted."""
    lines = page(TABLE).splitlines()
    assert lines.count("| ~x128x4096 bfloat16 | h200-nvlink | 2, 9 | 3, 17 |") == 1
    said = [line for line in lines if line.startswith("| ~x128x4096 bfloat16 | 8 | 50.0 | ")]
    assert said[1:] == ["| ~x128x4096 bfloat16 | 8 | 50.0 | 25.0 | - | - | 1.25 | - |"]
    without = replace(TABLE, entries=ENTRIES[:1])
    assert "predicted" not in page(without)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"machine": 3}'], ids=str)
def test_a_file_that_is_no_table_is_one_line_of_error(text, tmp_path, capsys):
    """The mutant that catches nothing ends in a traceback."""
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as left:
        main([str(path)])
    assert left.value.code == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert str(path) in said
    assert "overlapc calibrate --linear" in said


def test_it_is_drawn_the_same_twice(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "table.json"
    TABLE.save(path)
    texts = []
    for name in ("a", "b"):
        assert main([str(path), "--out", str(tmp_path / name)]) == 0
        texts.append((tmp_path / name / "linear_table.svg").read_text())
    assert texts[0] == texts[1]
    assert texts[0].count("M2") >= len(ENTRIES)
    assert texts[0].count("M1, M2 predicted") == 1
