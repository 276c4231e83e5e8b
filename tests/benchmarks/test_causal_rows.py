"""What the benchmark of causal rows writes, and that it compares equal results."""

from __future__ import annotations

import pytest

from benchmarks import causal_rows


def test_a_page_is_written(tmp_path):
    causal_rows.main(["--rows", "70", "130", "--rounds", "6", "--out", str(tmp_path)])
    _, _, _, _, *lines = (tmp_path / "causal_rows.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["70", "130"]


def test_ways_that_differ_are_not_timed(monkeypatch):
    by_rows = causal_rows.by_rows
    monkeypatch.setattr(causal_rows, "by_rows", lambda *given: 1.01 * by_rows(*given))
    with pytest.raises(AssertionError):
        causal_rows.compared(70, 1)
