"""The benchmarks on real processes: every candidate computes the same, and is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overlap_link.jobs import Job, run_job
from benchmarks.overlap_link.rows import from_json
from benchmarks.overlap_link.shapes import KINDS, LOOPBACK, Pair, Shape
from benchmarks.overlap_link.worker import MIN_ROUNDS
from benchmarks.plan_quality import rows as plan_quality_rows
from benchmarks.plan_quality.rows import FINALISTS, PLAN, PLAN_AGAIN

SMALL = Shape(96, 64, 80, "small")
UNEVEN = Shape(26, 33, 5, "groups of uneven size")
ONE = (Pair(UNEVEN, LOOPBACK, False, "all_gather_gemm"),)
ALL = tuple(Pair(shape, LOOPBACK, False, kind) for shape in (SMALL, UNEVEN) for kind in KINDS)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])


def job(calibration_seconds: float, pairs: tuple[Pair, ...] = ALL) -> Job:
    return Job(LOOPBACK, 0.01, calibration_seconds, pairs, tuning_seconds=calibration_seconds / 10)


def test_a_job_survives_being_written(tmp_path: Path) -> None:
    job(1.5).save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json") == job(1.5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("calibration_seconds", "pairs"),
    [
        pytest.param(0.0, ONE, id="references"),
        pytest.param(0.5, ONE, id="overlapc"),
        pytest.param(1.0, ALL, id="all chains"),
    ],
)
def test_two_ranks_measure_pairs(calibration_seconds: float, pairs: tuple[Pair, ...]) -> None:
    asked = job(calibration_seconds, pairs)
    lines = run_job(asked, "benchmarks.overlap_link.worker", ranks=2, timeout=0)
    rows = [from_json(line) for line in lines]
    assert [row.pair for row in rows] == list(pairs)
    for row in rows:
        assert row.samples.rounds >= MIN_ROUNDS
        assert row.has_overlapc == bool(calibration_seconds)
        assert (row.prediction is not None) == row.has_overlapc
        if row.prediction and not row.pair.is_extreme:
            assert "[measured_best]" in row.prediction.reason
        assert set(row.errors) == set(row.samples.seconds) - {"bound"}
        assert all(error < 1e-5 for error in row.errors.values()), row.errors


@pytest.mark.long
@pytest.mark.parametrize("pairs", [pytest.param(ALL, id="all")])
def test_two_ranks_compare_plans_to_fixed_cuts(pairs: tuple[Pair, ...]) -> None:
    lines = run_job(job(0.5, pairs), "benchmarks.plan_quality.worker", ranks=2, timeout=0)
    rows = [plan_quality_rows.from_json(line) for line in lines]
    assert [row.pair for row in rows] == list(pairs)
    for row in rows:
        assert row.has_plan
        assert len(row.fresh.seconds) == FINALISTS + 2
        assert {PLAN, PLAN_AGAIN} < set(row.fresh.seconds)
        assert set(row.first.seconds) == set(row.cuts)
        assert len(row.cuts) > 6
        assert row.best in row.first.seconds
        assert all(error < 1e-5 for error in row.errors.values()), row.errors
