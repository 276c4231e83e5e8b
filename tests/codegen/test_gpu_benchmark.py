"""What can be known of the GPU benchmark without a GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import device as gpu_device
from benchmarks.gpu import linear as gpu_linear
from benchmarks.gpu import run as gpu
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.asked import COMPARED
from benchmarks.gpu.attention import part as gpu_attention
from benchmarks.gpu.gemm import links as gpu_links
from benchmarks.gpu.gemm import nccl as gpu_nccl
from benchmarks.gpu.gemm import part as gpu_gemm
from benchmarks.gpu.gemm import rates as gpu_rates
from benchmarks.gpu.gemm import speed as gpu_speed
from benchmarks.gpu.gemm.emulated_link import BLOCK, LINKS, RING_PASSES, WARPS, paced_copy
from benchmarks.gpu.gemm.shapes import SHAPES
from benchmarks.gpu.gemm.speed import SIGNALING
from benchmarks.gpu.gemm.summary import summary
from benchmarks.gpu.report import Page, cell, table
from benchmarks.gpu.worker import Row, Worker, attempt
from benchmarks.measuring.deadline import Deadline
from overlapc.codegen.aot import compile_kernel
from overlapc.planning.target import Target
from overlapc.planning.tiles import tiles_for
from tests.codegen.machine_order import signal_order_faults

H200 = Target.load("h200-nvlink")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert command.main(["gemm"]) == 2
    assert capsys.readouterr().err == (
        "nothing measured: torch.cuda.is_available() is false here\n"
    )


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_python_that_lacks_what_is_measured_says_so(name, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert command.main(["gemm"]) == 2
    assert f"nothing measured: {sys.executable} cannot import {name}: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["sorting"], ["gemm", "--minutes", "nine"]], ids=str)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        command.main(arguments)


def dry_run(interpreted, path, *arguments) -> tuple[dict[str, Any], str]:
    data, page = interpreted("benchmark_cases.dry_run", str(path), *arguments)
    return json.loads((path / data).read_text()), (path / page).read_text()


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


def without_rows(result: dict[str, Any]) -> set[str]:
    """What a page says was not measured. Mutant: any name of a column in `gpu_asked`."""
    said = result[gpu.VERDICTS]
    return {its["row"] for its in said if its["verdict"] == "not measured"}


@pytest.mark.parametrize("first", [1, pytest.param(None, marks=pytest.mark.long)])
def test_rows_of_linear_layers_are_measured_and_written(interpreted, tmp_path, first):
    """Short calls in a row among them. Mutant: how many is a fraction."""
    started = interpreted.start("benchmark_cases.dry_run_of_linears", str(tmp_path), first)
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


@pytest.mark.parametrize("first", [1, pytest.param(None, marks=pytest.mark.long)])
def test_rows_of_attention_are_measured_and_written(interpreted, tmp_path, first):
    started = interpreted.start("benchmark_cases.dry_run_of_attention", str(tmp_path), first)
    data, page = started.result(600)
    result, text = json.loads((tmp_path / data).read_text()), (tmp_path / page).read_text()
    about = result.pop("about")
    assert [row["details"] for rows in result.values() for row in rows if "error" in row] == []
    assert about["rows"].endswith(" 0 of them failed, 0 left when time was up")
    assert all(result[name] for name in gpu_attention.TABLES)
    assert without_rows(result) <= {
        "decode over FlashInfer",
        "decode: share of the measured read bandwidth, from 32k tokens in total",
    }
    decode, *_ = measured(result[gpu_attention.DECODE])
    assert {"ours", "ours again", "online", "sdpa", "sdpa math", "flex"} <= set(decode["ms"])
    assert decode["share of the bound"] > 0
    assert "sdpa cudnn: " in decode["not there"]
    (latent,), (float8,) = (measured(result[its]) for its in (gpu_attention.LATENT,
                                                             gpu_attention.FLOAT8))  # fmt: skip
    assert {"ours", "online", "sdpa math"} <= set(latent["ms"])
    assert "flashmla: ModuleNotFoundError" in latent["not there"]
    assert "flashinfer: ModuleNotFoundError" in latent["not there"]
    assert latent["read bound us"] > 0
    assert {"ours", "bfloat16", "dequantised", "sdpa"} <= set(float8["ms"])
    assert float8["of bfloat16"][0] > 0
    assert float8["bound us"] > 0
    (cache,) = measured(result[gpu_attention.CACHE])
    assert cache["of inductor"][0] > 0
    assert cache["of inductor, given the mask"][0] > 0
    prefill, *_ = measured(result[gpu_attention.PREFILL])
    assert prefill["redone"] == 0
    (trained,) = measured(result[gpu_attention.TRAINED])
    assert {"ours", "online", "sdpa", "sdpa math"} <= set(trained["ms"])
    wide = measured(result[gpu_attention.REDONE])
    assert [row["redone"] > 0 for row in wide] == [True] * len(wide)
    assert all("first keys" in row["ms"] for row in wide)
    assert "kernels that are right" in text
    assert "bound us" in text
    if not first:
        assert prefill["bound us"] > 0
        pages = [row for row in measured(result[gpu_attention.DECODE]) if "pages" in row["row"]]
        assert all("flashinfer: ModuleNotFoundError" in row["not there"] for row in pages)
        assert len(result[gpu_attention.DECODE]) == 16


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "skipped" not in row]


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        ("prefill", "bfloat16, causal, 4 queries a head", "one key too many"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("decode", "pages", "scale"),
                ("gradients", "trained slopes", "scale"),
                ("gradients", "a mask that hides tiles", "scale"),
                ("gradients", "bfloat16, causal, 4 queries a head", "one key too many"),
                ("prefill", "slopes", "no mask"),
                ("prefill", "scores of hundreds", "nothing is redone"),
                ("decode", "scores of hundreds", "nothing is redone"),
                ("running", "few rows", "nothing is redone"),
                ("prefill", "a mask that hides tiles", "scale"),
                ("decode", "a mask that hides tiles", "scale"),
                ("decode", "float8 cache", "scale"),
                ("decode", "latent, 128 heads", "scale"),
                ("prefill", "float32", "scale"),
            )
        ),
    ],
)
def test_the_check_of_an_attention_sees_what_is_wrong(interpreted, kind, name, wrong):
    right, seen = interpreted("benchmark_cases.a_wrong_attention_is_seen", kind, name, wrong)
    assert right["largest error"] <= 1
    assert seen["error"].startswith(("WrongResult", "KernelError"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_row_of_a_run_is_measured(interpreted, tmp_path):
    shapes = len(gpu_gemm.MORE)
    started = interpreted.start("benchmark_cases.dry_run", str(tmp_path), None, shapes)
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
    right, lossy = interpreted("benchmark_cases.a_lossy_link_is_seen", collective, by_columns)
    assert right["largest error"] < 0.01
    assert lossy["error"].startswith("WrongResult")


KINDS = [
    "all_reduce",
    *(pytest.param(kind, marks=pytest.mark.long) for kind in ("reduce_scatter", "all_to_all")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_is_measured_on_the_host_and_on_the_device(interpreted, kind):
    row = interpreted("benchmark_cases.one_rank", kind)
    assert "error" not in row, row
    assert row["row"] == f"1 rank, {kind}"
    assert row["relative error"] < 0.01
    assert row["host us, signaled in 4 groups"] > 0
    assert row["waits by"] == "a kernel"


@pytest.mark.long
def test_two_ranks_compute_what_gloo_does(interpreted):
    """All of the row but NCCL: processes, their store, what they say."""
    row = interpreted("benchmark_cases.two_ranks")
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


# One row costs no other


@pytest.fixture(scope="module")
def worker():
    made = Worker()
    yield made
    made.close()


def row(name: str) -> Row:
    return Row("table", name, f"tests.codegen.worker_cases.{name}", seconds=5)


def test_a_process_is_given_shapes_and_targets(worker):
    given = {"shape": SHAPES[0], "target": H200, "tile": tiles_for("sm_90", "bfloat16")[0]}
    asked = replace(row("echoes"), arguments=given)
    assert worker.run(asked, 20) == given


def test_a_row_that_raises_keeps_its_process(worker):
    first = worker.run(row("answers"), 20)
    assert 0 < first["left"] <= 5
    failed = worker.run(row("raises"), 20)
    assert (failed["row"], failed["error"]) == ("raises", "RuntimeError: this row is wrong")
    assert "in raises" in failed["details"]
    assert worker.run(row("answers"), 20)["process"] == first["process"]


@pytest.mark.parametrize(
    ("name", "limit", "says"), [("crashes", 20, "exit code 9"), ("hangs", 0.2, "within 0 s")]
)
def test_a_row_that_crashes_or_hangs_costs_its_process_alone(worker, name, limit, says):
    first = worker.run(row("answers"), 20)
    assert says in worker.run(row(name), limit)["error"]
    assert worker.run(row("answers"), 20)["process"] != first["process"]


PARENT = """
import os, signal
from benchmarks.gpu.worker import Row, Worker

if __name__ == "__main__":
    worker, cases = Worker(), "tests.codegen.worker_cases"
    print(worker.run(Row("", "", f"{cases}.answers"), 20)["process"], flush=True)
    worker._connection.send(Row("", "", f"{cases}.hangs"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_a_row_that_hangs_ends_where_the_run_is_killed(tmp_path):
    """Nobody else would end it, and it would keep the device. Mutant: it does not ask for that."""
    script, said = tmp_path / "parent.py", tmp_path / "said"
    script.write_text(PARENT)
    root = Path(__file__).parents[2]
    with said.open("w") as out:
        subprocess.run(
            [sys.executable, str(script)], cwd=root, check=False, stdout=out, timeout=60,
            env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
    process = int(said.read_text())
    try:
        ends = time.monotonic() + 10
        while is_running(process) and time.monotonic() < ends:
            time.sleep(0.02)
        assert not is_running(process)
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


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


def test_a_short_call_is_timed_with_others_in_a_row(monkeypatch):
    """Mutants: the time of all is taken for that of one, or the host is not waited for so long."""
    slept, called = [], []
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    event.elapsed_time = lambda end: 0.01 * len(called)  # milliseconds
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    calls = gpu_timing.calls_in_a_row(lambda: called.append(1), 1e-3)
    assert calls == gpu_timing.MOST_CALLS
    called.clear()
    seconds = gpu_timing.device_seconds(lambda: called.append(1), 1e-3, calls)
    assert (len(called), round(seconds, 9)) == (calls, 1e-5)
    assert slept[1] == calls * slept[0]
    monkeypatch.setattr(gpu_timing, "device_seconds", lambda run, host: 100e-6)
    assert gpu_timing.calls_in_a_row(lambda: None, 0.0) == 2


def test_what_is_compared_is_timed_by_as_many_calls(monkeypatch):
    """Mutants: each candidate by as many as it needs itself; by the fewest that any needs."""
    timed: dict[str, set[int]] = {"short": set(), "long": set()}
    seconds = {"short": 149e-6, "long": 151e-6}  # of which 2 and 1 are long enough

    def device_seconds(run: Any, host: float, calls: int = 0) -> float:
        if calls:
            timed[run()].add(calls)
        return seconds[run()]

    monkeypatch.setattr(gpu_timing, "warmed_up", lambda run: 0.0)
    monkeypatch.setattr(gpu_timing, "device_seconds", device_seconds)
    runs = {"short": lambda: "short", "long": lambda: "long"}
    gpu_timing.measure_on_device(runs, Deadline.after(0), 0)
    assert timed == {"short": {2}, "long": {2}}


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


def test_the_most_telling_rows_of_attention_come_first():
    """Of a run that is cut off: what is timed is checked, and of each table something is there."""
    rows = list(gpu_attention.rows({}, H200))
    first = [row.table for row in rows[: len(rows) // 2]]
    assert set(first) == set(gpu_attention.TABLES)
    checks = {
        is_of_gradients: [
            at for at, row in enumerate(rows)
            if row.table == gpu_attention.CHECKED
            and (row.arguments["kind"] == gpu_attention.GRADIENTS) == is_of_gradients
        ]
        for is_of_gradients in (False, True)
    }  # fmt: skip
    first_trained = [row.table for row in rows].index(gpu_attention.TRAINED)
    assert checks[False] == list(range(2, 2 + len(checks[False])))
    assert checks[True] == list(range(first_trained - len(checks[True]), first_trained))
    assert len(checks[False]) + len(checks[True]) == sum(
        len(cases) for _, cases in gpu_attention.CHECKS.values()
    )
    given = [row.arguments for row in rows if row.table == gpu_attention.DECODE]
    assert {(one["shape"].groups, bool(one["shape"].page)) for one in given} == {
        (4, False), (4, True), (8, False), (8, True),
    }  # fmt: skip
    assert {one["shape"].keys for one in given} >= {1 << 10, 1 << 17}
    assert {one["shape"].batch for one in given} >= {1, 64}
    assert [one["with_flex"] for one in given[:12]] == [True, False] * 6
    assert not any(one["with_flex"] and one["shape"].page for one in given)


def test_rows_of_attention_are_bounded_by_what_was_measured_before():
    done = {gpu_attention.BOUNDS: [{"row": "r", "TB/s": 4.0}, {"row": "p", "TFLOP/s": 700.0}]}
    rates = {row.table: row.arguments["rate"] for row in gpu_attention.rows(done, H200)
             if "rate" in row.arguments}  # fmt: skip
    assert rates[gpu_attention.DECODE] == rates[gpu_attention.CACHE] == 4e12
    assert rates[gpu_attention.PREFILL] == 7e14
    assert rates[gpu_attention.LATENT] == rates[gpu_attention.FLOAT8] == 4e12
    products = {row.arguments["flops"] for row in gpu_attention.rows(done, H200)
                if row.table == gpu_attention.LATENT}  # fmt: skip
    assert products == {7e14}


# Numbers


def test_rates_are_read_off_times_that_follow_the_model():
    launch, beside, step = 4e-6, 1.5e-6, 3e-10
    seconds = {
        (w, k): launch + w * (beside + k * step) for w in gpu_rates.WAVES for k in gpu_rates.DEPTHS
    }
    fit = gpu_rates.Fit.of(seconds)
    assert (fit.launch, fit.beside, fit.step) == pytest.approx((launch, beside, step))
    assert fit.flops_per_second(132 * 128 * 256) == pytest.approx(2 * 132 * 128 * 256 / step)


def rates_row(tile: Any, rate: float) -> dict[str, Any]:
    return {
        "row": str(tile), "TFLOP/s": rate, "torch.mm TFLOP/s": 800.0,
        "us of a wave beside its products": 10.0, "torch.mm us of a launch": 3.0,
    }  # fmt: skip


def test_a_target_takes_what_was_measured():
    first, second, *_ = tiles_for("sm_90", "bfloat16")
    rows = [rates_row(first, 720.0), rates_row(second, 760.0), {"row": "x", "error": "y"}]
    waits = [{"row": "driver", "us from a signal to the start": 2.5}]
    numbers = gpu_rates.numbers_of(rows, waits, H200)
    assert numbers["generated_share"] == pytest.approx(0.95)
    assert numbers[f"share of {first}"] == pytest.approx(720 / 760)
    target = gpu_rates.measured_target(H200, numbers)
    rates = next(its for its in target.gemm if its.dtype == "bfloat16")
    assert (rates.flops_per_second, rates.generated_share) == pytest.approx((8e14, 0.95))
    assert target.signal_seconds == pytest.approx(2.5e-6)
    stored = 2 * 132 * second.elements / 4.8e12
    assert target.tile_seconds == pytest.approx(10e-6 - stored)
    assert gpu_rates.measured_target(H200, {}) == H200


def test_what_no_target_can_have_is_not_planned_with():
    done = {gpu_gemm.RATES: [rates_row(tiles_for("sm_90", "bfloat16")[0], -1.0)]}
    assert gpu_gemm.known_target(done, H200) == H200


def test_plans_know_the_link_as_it_was_measured():
    curves = {kind: [[1024, 2e-6], [4096, 7e-6]] for kind in RING_PASSES}
    measured = {
        "row": "EMULATED PCIe-like of 4 ranks", "curves": curves,
        "torch.mm beside it, times slower": 1.5, "it beside torch.mm, times slower": 1.25,
    }  # fmt: skip
    target = gpu_links.with_links(H200, [measured], "PCIe-like", 4)
    assert {link.collective for link in target.links} == set(RING_PASSES)
    assert all(link.alone.points == ((1024, 2e-6), (4096, 7e-6)) for link in target.links)
    assert (target.compute_slowdown, target.link_slowdown) == (1.5, 1.25)
    assert target.communication_sms == LINKS["PCIe-like"](4).ctas
    # What was not measured is as it is to be.
    nominal = gpu_links.with_links(H200, [measured], "PCIe-like", 2).links[0]
    assert nominal.alone.seconds(1 << 20) == LINKS["PCIe-like"](2).seconds(1 << 20)
    # And what no link can be.
    impossible = {**measured, "it beside torch.mm, times slower": float("nan")}
    row = gpu_gemm.overlapped(
        replace(SHAPES[0], ranks=4), H200, {gpu_gemm.LINKED: [impossible]}, "all_reduce",
        "PCIe-like", "",
    )  # fmt: skip
    assert row.arguments["target"].links[0].alone.points[-1][0] == gpu_links.SIZES[-1]


@pytest.mark.parametrize("count", [132, 114, 108, 113, 6])
def test_whole_waves_fill_every_multiprocessor(count):
    down, across = gpu_rates.near_square(count)
    assert down * across == count
    assert down >= across


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


def test_a_summary_of_attention_says_of_how_many_rows_it_is():
    decode = [
        {"row": name, "tokens": tokens, "share of the bound": share, "redone": 0,
         "of best sdpa": [ratio, ratio, ratio], "unified over online": [1.1, 1.0, 1.2]}
        for name, tokens, share, ratio in (
            ("a", 1 << 15, 0.95, 1.5), ("b", 1 << 16, 0.5, 0.9), ("c", 1 << 10, 0.2, 1.2),
        )
    ]  # fmt: skip
    done = {
        gpu_attention.CHECKED: [{"row": "a"}, {"row": "b", "error": "wrong"}],
        gpu_attention.DECODE: [*decode, {"row": "d", "skipped": "34 GB are too much"}],
        gpu_attention.CACHE: [{"row": "e", "of inductor": [3.5, 3.4, 3.6]}],
    }
    lines = {its["row"]: its for its in gpu_attention.summary(done)}
    assert lines["kernels that are right"]["rows"] == "1 of 2"
    best = lines["decode: of best sdpa"]
    assert (best["rows"], best["least"]) == ("3 of 3", 0.9)
    assert best["geomean"] == pytest.approx((1.5 * 0.9 * 1.2) ** (1 / 3))
    assert lines["static cache: of inductor"]["least"] == 3.5
    assert "prefill: of best sdpa" not in lines
    assert gpu_attention.summary({}) == []


def test_bytes_and_operations_of_attention():
    from benchmarks.gpu.attention.speed import DecodeShape, PrefillShape

    shape = DecodeShape(2, 4, 1024)
    assert shape.bytes == 2 * (2 * 8 * 1024 * 128) * 2 + 2 * (2 * 32 * 128) * 2
    whole = PrefillShape(1, 4, 512, 64, is_causal=False)
    assert whole.flops == 2 * (2 * 32 * 512 * 512 * 64)
    assert PrefillShape(1, 4, 512, 64).flops == whole.flops / 2


def test_a_table_holds_every_column_of_every_row():
    rows = [{"row": "a", "x": [1.0, 0.9, 1.1], "ms": {"y": 1}}, {"row": "b|c", "z": 1.23456}]
    assert table(rows) == [
        "| row | x | z |",
        "| --- | --- | --- |",
        "| a | 1.000 [0.900, 1.100] |  |",
        "| b/c |  | 1.23 |",
    ]
    assert cell(True) == "True"


# The emulated link


@pytest.mark.parametrize("collective", RING_PASSES)
@pytest.mark.parametrize("sizes", [(1, 5), (3, 20000), (7, 40000)], ids=str)
def test_an_emulated_collective_moves_twice_its_link_bytes(interpreted, collective, sizes):
    link_bytes, stored = interpreted("link_cases.copies_whole_bands", collective, *sizes)
    # As many are read as stored, and everything arrives; what is kept is stored twice.
    least = max(link_bytes, 4 * sizes[0] * sizes[1])
    kept = 4 * sizes[1] * (collective == "reduce_scatter")
    assert least + kept <= stored <= least + kept + 4 * BLOCK


def test_an_emulated_collective_takes_its_time(interpreted):
    nominal, taken = interpreted("link_cases.takes_its_time", 0.1)
    assert nominal <= taken < 2 * nominal


@pytest.mark.parametrize("link", LINKS)
def test_a_ring_sends_what_it_sends(link):
    its = LINKS[link](8)
    assert its.link_bytes(8_000_000) == 2 * 7 / 8 * 8_000_000
    assert its.link_bytes(8_000_000, "all_to_all") == 7 / 8 * 8_000_000
    assert its.seconds(0) == its.alpha_seconds
    assert replace(its, ranks=2).link_bytes(8) == 8


@pytest.mark.parametrize("keeps", [False, True])
def test_the_paced_copy_is_built_for_hopper(keeps, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel: Any = paced_copy
    constants = {"PACED": True, "KEEPS": keeps, "BLOCK": BLOCK}
    pointers = dict.fromkeys(("source", "target", "kept"), "*bf16")
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    # As Triton specializes it, of tensors and sizes that are multiples of 16.
    given = [at for at in range(6) if not kernel.params[at].do_not_specialize]
    aligned = {(at,): [["tt.divisibility", 16]] for at in given}
    binary = compile_kernel(kernel, signature, constants, aligned, "sm_90", {"num_warps": WARPS})
    assert binary.spilled_bytes == 0
    # By 16 bytes; element by element no SM keeps the pace. Mutant: "first" is not specialized.
    assert set(re.findall(r"(?:ld|st)\.global\S*", binary.assembly)) == {
        "ld.global.v4.b32", "st.global.v4.b32"
    }  # fmt: skip
    # Read at the start, and again and again in the loop that waits.
    assert binary.assembly.count("%globaltimer;") == 2


def test_the_measured_signal_is_built_for_hopper(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel: Any = gpu_rates.announce
    signature = {"times": "*i64", "counter": "*i32", "delay_ns": "i32"}
    text = compile_kernel(kernel, signature, {}, {}, "sm_90", {"num_warps": 1}).assembly
    # The time is noted, and then the counter bumped as a tile's is.
    assert signal_order_faults(text, signals=True) == []


CLOCKED = [
    Row("t", "signals", "benchmarks.gpu.gemm.rates.signals", {"by": "kernel"}),
    Row("t", "a link", "tests.codegen.test_gpu_benchmark.sends"),
]


def sends(deadline: Deadline) -> dict[str, Any]:
    LINKS["NVLink-like"](2).move("all_reduce", torch.zeros(8), torch.zeros(8))
    return {}


@pytest.mark.parametrize("row", CLOCKED, ids=lambda row: row.name)
def test_rows_that_read_the_time_on_the_device_are_left_out_on_amd(row, monkeypatch):
    assert "error" in attempt(row)  # for there is no GPU here at all
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert attempt(row) == {
        "row": row.name, "skipped": "its kernels read the time by NVIDIA's %globaltimer"
    }  # fmt: skip


def test_amds_devices_are_called_as_kernels_for_them_are(monkeypatch):
    found = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert gpu_device.architecture() == "gfx942"
