"""The part of GEMMs: its rows interpreted, what they conclude, and mistakes that checks see."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.gpu import run as gpu
from benchmarks.gpu.asked import COMPARED
from benchmarks.gpu.gemm import part as gpu_gemm
from benchmarks.gpu.gemm import speed as gpu_speed
from benchmarks.gpu.gemm.speed import SIGNALING
from benchmarks.gpu.gemm.summary import summary
from tests.benchmarks.gpu.dry_runs import dry_run, without_rows


def test_one_row_of_every_kind_is_measured_and_written(interpreted, tmp_path):
    result, page = dry_run(interpreted, tmp_path, 1)
    about = result.pop("about")
    assert about["device"] == "CPU, 6 SMs"
    assert about["rows"].endswith(" 0 of them failed, 0 left when time was up")
    assert all("error" not in row for rows in result.values() for row in rows)
    assert all(result[name] for name in gpu_gemm.TABLES)
    (row,) = [row for row in result[gpu_gemm.OVERLAP] if "skipped" not in row]
    assert {"serial", "two parts", "chunked", "signaled", "bound"} <= set(row["ms"])
    assert row["planned"].startswith("band 64x64x32")
    named = {row["row"]: row["measured"] for row in result[gpu_gemm.FOR_TARGET]}
    assert named["generated_share"] == pytest.approx(0.5)
    assert 0 < named["signal_seconds"] < 10
    assert "share of the bound" in page
    assert "EMULATED" in page
    assert without_rows(result) == {
        "NCCL in a world of one, and two ranks on one GPU",
        "GEMM over `torch.mm`, 16 SMs left to both",  # of 6
        "signaled over an EMULATED link, over FlashOverlap's mean on like ratios",
    }
    assert page.index(gpu.VERDICTS) < page.index("Summary")
    (compared,) = result[COMPARED]
    assert compared["signaled over serial"] == row["signaled over serial"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_row_of_a_run_is_measured(interpreted, tmp_path):
    shapes = len(gpu_gemm.MORE)
    started = interpreted.start("benchmarks.gpu.gemm_cases.dry_run", str(tmp_path), None, shapes)
    data, _ = started.result(500)
    result = json.loads((tmp_path / data).read_text())
    assert all("error" not in row for rows in result.values() for row in rows)
    assert {row["row"].split(", ", 2)[2] for row in result[gpu_gemm.OVERLAP]} == {
        "all_reduce", "reduce_scatter", "all_to_all",
        "all_reduce, epilogue: bias", "all_reduce, epilogue: gated",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("collective", "by_columns"),
    [
        pytest.param("all_reduce", False, marks=pytest.mark.long),
        ("reduce_scatter", False),
        pytest.param("all_to_all", True, marks=pytest.mark.long),
    ],
)
def test_the_check_of_a_path_sees_what_a_collective_leaves_out(interpreted, collective, by_columns):
    right, lossy = interpreted(
        "benchmarks.gpu.gemm_cases.a_lossy_link_is_seen", collective, by_columns
    )
    assert right["largest error"] < 0.01
    assert lossy["error"].startswith("WrongResult")


def test_the_library_leaves_multiprocessors_out_where_it_is_told_to(monkeypatch):
    """cuBLASLt is, and is preferred for this run alone. Mutants: it is not preferred; nothing is
    set back where the run raises."""
    now = {"library": "cublas", "left": None}

    def prefer(name: str | None = None) -> Any:
        now["library"] = name or now["library"]
        return now["library"]

    def raising() -> None:
        seen.append(dict(now))
        raise RuntimeError

    seen: list[Any] = []
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", prefer)
    monkeypatch.setattr(
        torch._C, "_set_sm_carveout_experimental", lambda left: now.update(left=left)
    )
    with pytest.raises(RuntimeError):
        gpu_speed.carved_out(raising, 16)()
    assert seen == [{"library": "cublaslt", "left": 16}]
    assert now == {"library": "cublas", "left": None}


def test_a_summary_says_of_how_many_rows_it_is():
    checked = [{"row": "a"}, {"row": "b", "error": "wrong"}]
    speed = [
        {"row": "a", "of torch.mm": [0.9, 0.8, 1.0], SIGNALING: [0.999, 0.99, 1.0]},
        {"row": "b", "of torch.mm": [1.6, 1.5, 1.7], "ms": {}},
        {"row": "c", "error": "crashed"},
    ]
    overlap = [
        {
            "EMULATED link": link, "chosen over serial": best,
            "signaled over serial": [1.2, 1.1, 1.3],
            "two parts over serial": [1.1, 1.0, 1.2], "signaled: predicted over measured": 0.9,
        }
        for link, best in (("NVLink-like", 1.2), ("PCIe-like", 1.0))
    ]  # fmt: skip
    lines = {its["row"]: its for its in summary(checked, speed, overlap)}
    assert lines["kernels and paths that are right"]["rows"] == "1 of 2"
    mm = lines["GEMM: of torch.mm"]
    assert (mm["rows"], mm["least"], mm["geomean"]) == ("2 of 2", 0.9, pytest.approx(1.2))
    assert lines[f"GEMM: {SIGNALING}"]["rows"] == "1 of 2"
    assert lines["over EMULATED PCIe-like: two parts over serial"]["median"] == 1.1
    best = lines["what is predicted to be best, over serial"]
    assert (best["least"], best["most"]) == (1.0, 1.2)
    assert lines["error of predictions, signaled"]["median"] == pytest.approx(0.1)
    assert summary([], [], []) == []
