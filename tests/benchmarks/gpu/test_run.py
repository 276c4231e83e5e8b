"""A run over rows that are not measured: what fails, hangs or is interrupted leaves the rest."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from benchmarks.gpu import run as gpu
from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.attention import part as gpu_attention
from benchmarks.gpu.gemm import part as gpu_gemm
from benchmarks.gpu.gemm.shapes import SHAPES
from benchmarks.gpu.report import Page
from benchmarks.gpu.worker import Row
from overlapc.planning.target import Target

H200 = Target.load("h200-nvlink")


class Stub:
    """A runner of rows that are not measured; some fail or hang, and one is interrupted."""

    def __init__(self, *, fails: str = "", interrupted: str = "", hangs: str = "") -> None:
        self.fails, self.interrupted, self.hangs = fails, interrupted, hangs
        self.tried = Counter[str]()

    def run(self, row: Row, limit: float) -> dict[str, Any]:
        if row is gpu.DESCRIBED:
            return {"device": "H200", "shipped": H200}
        self.tried[row.table] += 1
        if row.table == self.hangs:
            return {"row": row.name, "error": f"{gpu_worker.HUNG} within 60 s, and was ended."}
        if self.interrupted and row.table == self.interrupted:
            raise KeyboardInterrupt
        if self.fails in (row.table, "all"):
            return {"row": row.name, "error": "it failed"}
        return {"row": row.name}


FEW = SHAPES[:5]


@pytest.fixture
def few_shapes(monkeypatch):
    rows = gpu_gemm.rows
    monkeypatch.setattr(gpu_gemm, "rows", lambda done, shipped: rows(done, shipped, FEW))


def written(path) -> dict[str, Any]:
    (data,) = path.glob("*.json")
    return json.loads(data.read_text())


@pytest.mark.usefixtures("few_shapes")
@pytest.mark.parametrize("fails", [*gpu_gemm.TABLES, "all"])
def test_tables_that_fail_leave_the_others(fails, tmp_path):
    failures = gpu.measure("gemm", Page(tmp_path, "gemm"), Stub(fails=fails), 1)
    result = written(tmp_path)
    rows = [row for name in gpu_gemm.TABLES for row in result[name]]
    assert failures == sum("error" in row for row in rows) > 0
    assert f", {failures} of them failed, 0 left" in result["about"]["rows"]
    assert len(result[gpu_gemm.SPEED]) == len(FEW)
    assert len(result[gpu_gemm.OVERLAP]) == 2 * len(FEW)


@pytest.mark.usefixtures("few_shapes")
def test_what_is_interrupted_leaves_what_was_measured(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        gpu.measure("gemm", Page(tmp_path, "gemm"), Stub(interrupted=gpu_gemm.SPEED), 1)
    result = written(tmp_path)
    assert len(result[gpu_gemm.LINKED]) == 2
    assert result[gpu_gemm.SPEED] == []


@pytest.mark.usefixtures("few_shapes")
def test_what_hangs_in_every_row_leaves_time_for_the_rest(tmp_path):
    """Mutant: no row is left untried."""
    stub = Stub(hangs=gpu_gemm.STAGED)
    failures = gpu.measure("gemm", Page(tmp_path, "gemm"), stub, 1)
    result = written(tmp_path)
    assert stub.tried[gpu_gemm.STAGED] == gpu.MOST_HUNG
    assert failures == len(result[gpu_gemm.STAGED]) > gpu.MOST_HUNG
    assert result[gpu_gemm.STAGED][-1]["error"].startswith("Not tried: 2 rows like it")
    assert stub.tried[gpu_gemm.OVERLAP] == 2 * len(FEW)


def test_what_hangs_in_one_kind_of_attention_leaves_the_checks_of_the_others(tmp_path):
    """All are checked by one function. Mutants: what hangs is counted by it alone; by nothing."""

    class Hangs(Stub):
        def run(self, row: Row, limit: float) -> dict[str, Any]:
            kind = row.arguments.get("kind")
            self.tried[f"kind {kind}"] += 1
            error = {"error": f"{gpu_worker.HUNG} within 60 s."} if kind == "prefill" else {}
            return super().run(row, limit) | error

    stub = Hangs()
    failures = gpu.measure("attention", Page(tmp_path, "attention"), stub, 1)
    for kind, (_, cases) in gpu_attention.CHECKS.items():
        tried = gpu.MOST_HUNG if kind == "prefill" else len(cases)
        assert stub.tried[f"kind {kind}"] == tried
    assert failures == len(gpu_attention.CHECKS["prefill"][1]) > gpu.MOST_HUNG


@pytest.mark.usefixtures("few_shapes")
def test_a_run_without_time_says_what_is_left(tmp_path):
    gpu.measure("gemm", Page(tmp_path, "gemm"), Stub(), 0)
    assert "0 tried, 0 of them failed" in written(tmp_path)["about"]["rows"]


def test_rows_that_cannot_be_made_cost_none_before_them(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_gemm, "overlapped", lambda *given: 1 / 0)
    assert gpu.measure("gemm", Page(tmp_path, "gemm"), Stub(), 1) == 1
    assert len(written(tmp_path)[gpu_gemm.SPEED]) == 1


def test_a_disk_that_is_full_costs_no_row(tmp_path, monkeypatch, few_shapes, capsys):
    def full(self: Page, about: Any, tables: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(Page, "write", full)
    assert gpu.measure("gemm", Page(tmp_path, "gemm"), Stub(), 1) == 0
    assert "not written: no space left" in capsys.readouterr().out


@pytest.mark.usefixtures("few_shapes")
def test_a_summary_that_fails_costs_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_gemm, "summary", lambda *tables: 1 / 0)
    gpu.measure("gemm", Page(tmp_path, "gemm"), Stub(), 1)
    assert len(written(tmp_path)[gpu_gemm.SPEED]) == len(FEW)


@pytest.mark.parametrize("fails", ["", *gpu_attention.TABLES, "all"])
def test_tables_of_attention_that_fail_leave_the_others(fails, tmp_path):
    failures = gpu.measure("attention", Page(tmp_path, "attention"), Stub(fails=fails), 1)
    result = written(tmp_path)
    rows = [row for name in gpu_attention.TABLES for row in result[name]]
    assert failures == sum("error" in row for row in rows)
    assert bool(failures) == bool(fails)
    assert len(result[gpu_attention.DECODE]) == 4 * len(gpu_attention.SIZES)
    assert len(result[gpu_attention.CHECKED]) == sum(
        len(cases) for _, cases in gpu_attention.CHECKS.values()
    )
