"""NCCL's rows: run on gloo, skipped where NCCL cannot, and ranks that fail or hang."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import torch

from benchmarks.gpu.gemm import nccl as gpu_nccl
from benchmarks.gpu.worker import Row, attempt

KINDS = [
    "all_reduce",
    *(pytest.param(kind, marks=pytest.mark.long) for kind in ("reduce_scatter", "all_to_all")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_is_measured_on_the_host_and_on_the_device(interpreted, kind):
    row = interpreted("benchmarks.gpu.nccl_cases.one_rank", kind)
    assert "error" not in row, row
    assert row["row"] == f"1 rank, {kind}"
    assert row["relative error"] < 0.01
    assert row["host us, signaled in 4 groups"] > 0
    assert row["waits by"] == "a kernel"


@pytest.mark.long
def test_two_ranks_compute_what_gloo_does(interpreted):
    """All of the row but NCCL: processes, their store, what they say."""
    row = interpreted("benchmarks.gpu.nccl_cases.two_ranks")
    assert "error" not in row, row
    assert row["NCCL"] == "2.30.3"
    for kind in ("all_reduce", "reduce_scatter", "all_to_all"):
        assert 0 < row[f"relative error, {kind}"] < 0.01


@pytest.fixture
def some_nccl(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(gpu_nccl.nccl, "version", lambda: (2, 30, 3))
    return monkeypatch


NCCL_ROWS = [
    Row("", "1 rank", "benchmarks.gpu.gemm.nccl.one_rank", {"kind": "all_reduce"}),
    Row("", "2 ranks", "benchmarks.gpu.gemm.nccl.two_ranks"),
]


@pytest.mark.parametrize("row", NCCL_ROWS, ids=lambda row: row.name)
def test_without_nccl_its_rows_are_skipped(row, some_nccl):
    some_nccl.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert attempt(row)["skipped"] == "this torch has no NCCL"


def test_an_nccl_that_lets_no_two_ranks_share_a_gpu_is_skipped(some_nccl):
    """Mutant: versions are compared as text, of which 2.9 is the newest."""
    for old in ((2, 30, 2), (2, 9, 9), (1, 99, 0)):
        some_nccl.setattr(gpu_nccl.nccl, "version", lambda old=old: old)
        why = (
            f"NCCL {'.'.join(map(str, old))} lets no two ranks share a GPU; from 2.30.3 on it does"
        )
        assert attempt(NCCL_ROWS[1])["skipped"] == why


def ranks_that(monkeypatch: Any, code: str, seconds: float) -> dict[str, Any]:
    monkeypatch.setattr(gpu_nccl, "RANK", (sys.executable, "-c", f"import sys, time; {code}"))
    monkeypatch.setattr(gpu_nccl, "TIMEOUT_SECONDS", seconds)
    began = time.monotonic()
    found = attempt(NCCL_ROWS[1])
    assert time.monotonic() - began < 10
    return found


def test_the_worse_error_of_two_ranks_is_told(some_nccl):
    """Of what both print last, told which they are and that they may share a GPU."""
    kinds = "('all_reduce', 'reduce_scatter', 'all_to_all')"
    code = (
        "import json, os; assert os.environ['NCCL_MULTI_RANK_GPU_ENABLE'] == '1'; "
        f"print('more'); print(json.dumps(dict.fromkeys({kinds}, 0.1 + int(sys.argv[2]))))"
    )
    found = ranks_that(some_nccl, code, 50.0)
    assert found == {
        "row": "2 ranks", "NCCL": "2.30.3", "relative error, all_reduce": 1.1,
        "relative error, reduce_scatter": 1.1, "relative error, all_to_all": 1.1,
    }  # fmt: skip


def test_a_rank_that_fails_is_named_though_the_other_waits_for_it(some_nccl):
    """Mutants: ranks are waited for one after another; what the one said is lost."""
    code = "sys.exit('no device') if sys.argv[2] == '1' else time.sleep(60)"
    assert "rank 1 ended with exit code 1: no device" in ranks_that(some_nccl, code, 50.0)["error"]


def test_ranks_that_hang_are_ended(some_nccl):
    """And what fills a pipe is no reason to hang."""
    code = "sys.stderr.write('x' * 200_000); time.sleep(60 * (sys.argv[2] == '0'))"
    found = ranks_that(some_nccl, code, 1.0)["error"]
    assert "rank 0 did not end in 1.0 s: xxx" in found
