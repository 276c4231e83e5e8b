"""What the benchmark of some rows at a time writes, and that it compares equal results."""

from __future__ import annotations

import pytest

from benchmarks import by_rows

CASES = (
    by_rows.Case("float32", 1, 4, 2, 70, 70, "causal"),
    by_rows.Case("bfloat16", 2, 4, 4, 64, 130, "later"),
)


def test_a_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(by_rows, "CASES", CASES)
    by_rows.main(["--rounds", "6", "--out", str(tmp_path)])
    _, _, _, _, *lines = (tmp_path / "by_rows.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines] == [case.name for case in CASES]


def test_ways_that_differ_are_not_timed(monkeypatch):
    products = by_rows.attention_by_products
    monkeypatch.setattr(by_rows, "attention_by_products", lambda *given: 1.01 * products(*given))
    with pytest.raises(AssertionError):
        by_rows.compared(CASES[0], 1)
