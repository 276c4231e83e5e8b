"""What the benchmark of linear layers on GPUs concludes from rows."""

from __future__ import annotations

import pytest

from benchmarks.gpu.linear import COUNTS, dispatched, regions, summary

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
