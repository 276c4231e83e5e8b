"""Rows in a process of their own: one that fails, crashes or hangs costs no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.gemm.shapes import SHAPES
from benchmarks.gpu.worker import Row, Worker
from overlapc.planning.target import Target
from overlapc.planning.tiles import tiles_for

H200 = Target.load("h200-nvlink")


@pytest.fixture(scope="module")
def worker():
    made = Worker()
    yield made
    made.close()


def row(name: str) -> Row:
    return Row("table", name, f"tests.benchmarks.gpu.worker_cases.{name}", seconds=5)


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
    worker, cases = Worker(), "tests.benchmarks.gpu.worker_cases"
    print(worker.run(Row("", "", f"{cases}.answers"), 20)["process"], flush=True)
    worker._connection.send(Row("", "", f"{cases}.hangs"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_a_row_that_hangs_ends_where_the_run_is_killed(tmp_path):
    """Nobody else would end it, and it would keep the device. Mutant: it does not ask for that."""
    script, said = tmp_path / "parent.py", tmp_path / "said"
    script.write_text(PARENT)
    root = Path(__file__).parents[3]
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
