"""The overlap benchmark on real processes: every candidate computes the same, and is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.overlap_rows import from_json
from benchmarks.overlap_shapes import LOOPBACK, Pair, Shape
from benchmarks.overlap_worker import MIN_ROUNDS, Job
from benchmarks.ranks import run_ranks


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.parametrize("calibration_seconds", [0.0, 1.0])
def test_two_ranks_measure_a_pair(tmp_path: Path, calibration_seconds: float) -> None:
    shapes = (Shape(96, 64, 80, "small"), Shape(7, 33, 5, "uneven"))
    job = Job(
        pairs=[Pair(shape, LOOPBACK, True) for shape in shapes],
        seconds=0.01,
        rest_seconds=0.0,
        calibration_seconds=calibration_seconds,
        results=str(tmp_path / "rows.jsonl"),
        targets=str(tmp_path),
    )
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json") == job
    command = [sys.executable, "-m", "benchmarks.overlap_worker", str(tmp_path / "job.json")]
    run_ranks([command] * 2, timeout=90, echo=None).check()
    rows = [from_json(line) for line in Path(job.results).read_text().splitlines()]
    assert [row.pair.shape for row in rows] == list(shapes)
    for row in rows:
        assert row.samples.rounds >= MIN_ROUNDS
        assert row.has_overlapc == bool(calibration_seconds)
        assert (row.prediction is not None) == row.has_overlapc
        assert set(row.errors) == set(row.samples.seconds) - {"bound"}
        assert all(error < 1e-5 for error in row.errors.values()), row.errors
