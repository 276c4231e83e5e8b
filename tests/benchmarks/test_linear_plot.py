"""The plot and the page of a table of linear layers."""

from __future__ import annotations

import re

import pytest

from benchmarks.linear_plot import curves, main, page
from overlapc.planning.linear import Gain, LinearEntry, LinearProblem, LinearTrial, Regions
from overlapc.planning.linear_table import LinearTable, Machine

TRIALS = (
    LinearTrial(1, 4e-5, (Gain("gemv", 1.9, 2.0, 2.1), Gain("flat", 1.0, 1.25, 1.3))),
    LinearTrial(8, 5e-5, (Gain("flat", 1.2, 1.25, 1.3),)),
    LinearTrial(64, 5e-5, (Gain("flat", 0.8, 0.9, 1.0),)),
)
ENTRIES = tuple(
    LinearEntry(LinearProblem(n, 4096, "bfloat16"), Regions(1, 2, 9), TRIALS) for n in (64, 128)
)
TABLE = LinearTable(Machine("cuda", "a machine", "versions"), ENTRIES)


def test_curves_are_seconds_by_rows():
    found = curves(ENTRIES[0])
    assert [rows for rows, *_ in found["library"]] == [1, 8, 64]
    assert found["gemv"] == [(1, pytest.approx(2e-5), 4e-5 / 2.1, 4e-5 / 1.9)]
    assert found["flat"][1][1] == pytest.approx(4e-5)


def test_the_page_says_what_was_chosen_where():
    chosen = re.findall(r"\| (\w+) \|$", page(TABLE), re.MULTILINE)
    assert chosen == ["chosen", *["gemv", "flat", "library"] * 2]


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
