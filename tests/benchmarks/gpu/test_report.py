"""The page of a run."""

from __future__ import annotations

from benchmarks.gpu.report import cell, table


def test_a_table_holds_every_column_of_every_row():
    rows = [{"row": "a", "x": [1.0, 0.9, 1.1], "ms": {"y": 1}}, {"row": "b|c", "z": 1.23456}]
    assert table(rows) == [
        "| row | x | z |",
        "| --- | --- | --- |",
        "| a | 1.000 [0.900, 1.100] |  |",
        "| b/c |  | 1.23 |",
    ]
    assert cell(True) == "True"
