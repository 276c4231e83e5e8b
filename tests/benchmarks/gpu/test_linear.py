"""The part of linear layers: its rows interpreted, and what it concludes from rows."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu import linear as gpu_linear
from benchmarks.gpu.linear import COUNTS, dispatched, regions, summary
from tests.benchmarks.gpu.dry_runs import without_rows

GAINS = {1: {"gemv": 1.5}, 2: {"gemv": 0.9, "flat": 0.9}, 4: {"flat": 1.2}, 8: {"flat": 1.2},
         16: {"flat": 1.2}, 32: {"flat": 0.9}, 64: {"flat": 1.5}}  # fmt: skip


def rows_of(layer, gains, mib, share):
    return [
        {
            "layer": layer,
            "rows": rows,
            "weight MiB": mib,
            "library share of reading": share,
            "trial": {
                "library_seconds": 1e-5,
                "gains": [
                    {"implementation": way, "low": gain, "median": gain, "high": gain}
                    for way, gain in its.items()
                ],
            },
        }
        for rows, its in gains.items()
    ]


def test_the_summary_goes_by_the_run_of_row_counts_that_a_table_would_take():
    """Mutants: the best repeatable gain of each row, shares of the library, small weights too."""
    pair = {rows: {"flat": 1.6} for rows in COUNTS}
    rows = rows_of("Llama-3 8B down", GAINS, 112.0, 0.7)
    rows += rows_of("Llama-3 8B gate, up", pair, 24.0, 0.1)
    assert regions(rows)[1]["regions"] == "flat 4..16 rows, else the library"
    found = {row.pop("row"): row for row in summary(dispatched(rows))}
    alone = pytest.approx(1.2 ** (3 / 7))
    assert found["one weight"] == {"rows": 7, "geomean": alone, "least": 1.0}
    assert found["all but gate and up"] == found["one weight"]
    both = pytest.approx((1.2**3 * 1.6**7) ** (1 / 14))
    assert found["all layers"] == {"rows": 14, "geomean": both, "least": 1.0}
    assert found["gate and up"]["geomean"] == pytest.approx(1.6)
    large = found["weights of 32 MiB and more"]
    assert large == {"rows": 7, "least share of reading": pytest.approx(0.7)}


def test_the_least_share_of_reading_is_that_of_what_dispatch_takes():
    rows = rows_of("Llama-3 8B down", {rows: {"flat": 1.25} for rows in COUNTS}, 112.0, 0.7)
    (*_, large) = summary(dispatched(rows))
    assert large["least share of reading"] == pytest.approx(0.7 * 1.25)


@pytest.mark.parametrize("first", [1, pytest.param(None, marks=pytest.mark.long)])
def test_rows_of_linear_layers_are_measured_and_written(interpreted, tmp_path, first):
    """Short calls in a row among them. Mutant: how many is a fraction."""
    started = interpreted.start("benchmarks.gpu.linear_cases.dry_run", str(tmp_path), first)
    data, page = started.result(300)
    result, text = json.loads((tmp_path / data).read_text()), (tmp_path / page).read_text()
    about = result.pop("about")
    assert [row["details"] for rows in result.values() for row in rows if "error" in row] == []
    assert about["rows"].endswith(" 0 of them failed, 0 left when time was up")
    (row, *more) = [row for row in result[gpu_linear.SPEED] if "skipped" not in row]
    assert {gain["implementation"] for gain in row["trial"]["gains"]} == {"gemv", "flat"}
    assert row["share of reading"] > 0
    assert len(more) == (0 if first else 3)
    assert without_rows(result) <= {
        "weights of 32 MiB and more: share of the measured read bandwidth",
        "gate and up in one launch with their epilogue, over cuBLAS",
    }  # fmt: skip
    assert result[gpu_linear.REGIONS][0]["measured at"] >= 1
    (cost,) = result[gpu_linear.DISPATCH]
    assert {"op by the library, us beyond", "op by gemv, us beyond"} < set(cost)
    assert "geomean" in text
