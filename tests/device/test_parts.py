"""Every part of the GPU benchmark on an absent H200: compiled, loaded and launched for it.

What an interpreter cannot see is seen here: Triton's specialization, ptxas, launcher and tensor
maps at the sizes that are measured, the branches for devices of CUDA, and captures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import linear as gpu_linear
from benchmarks.gpu.__main__ import NO_GPU
from benchmarks.gpu.attention import part as gpu_attention
from benchmarks.gpu.gemm import part as gpu_gemm

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("g++")), reason="Triton's launcher needs a compiler"
)


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, for which torch and Triton are put right."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
                                "TRITON_CACHE_DIR": str(tmp_path / "triton")}  # fmt: skip
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False,
                          text=True, capture_output=True)  # fmt: skip


MEASURED = {
    "gemm": [name for name in gpu_gemm.TABLES if name != gpu_gemm.NCCL],
    "linear": [name for name in gpu_linear.TABLES if name != gpu_linear.REGIONS],
    "attention": gpu_attention.TABLES,
}
LAUNCHES_NOTHING = {gpu_attention.BOUNDS, gpu_linear.READ}
"""Torch alone."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "most"), [("gemm", 18), ("linear", 21), ("attention", 45)], ids=str
)
def test_rows_are_compiled_and_launched(part, most, tmp_path):
    done = run(tmp_path, "-m", "tests.device", part, str(tmp_path), str(most))
    assert done.returncode == 0, done.stdout + done.stderr
    # Its figures are of nothing, and it says so before the first.
    assert done.stdout.startswith("The GPU is absent: ")
    rows: list[dict[str, Any]] = json.loads((tmp_path / "found.json").read_text())
    assert [row.get("details", row["error"]) for row in rows if "error" in row] == []
    for table in MEASURED[part]:
        its = [row for row in rows if row["table"] == table and "skipped" not in row]
        assert its, table
        if table not in LAUNCHES_NOTHING:
            assert all(row["launched"] for row in its), table
    if part == "gemm":
        checked = [row for row in rows if row["table"] == gpu_gemm.CHECKED]
        assert any(row["tensor maps"] for row in checked)
        staged = [row for row in rows if row["table"] == gpu_gemm.STAGED]
        assert all(row["waits of the driver"] for row in staged)
    (page,) = tmp_path.glob("gpu-*.json")
    assert json.loads(page.read_text())["about"]["device"] == "NVIDIA H200, 132 SMs"


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_python_that_lacks_what_is_launched_says_so_in_one_line(name, tmp_path):
    """Mutant: no ``missing`` is asked."""
    start = "runpy.run_module('tests.device', run_name='__main__')"
    done = run(tmp_path, "-c", f"import runpy, sys; sys.modules[{name!r}] = None; {start}")
    assert done.returncode == NO_GPU
    assert done.stderr.startswith(f"nothing launched: {sys.executable} cannot import {name}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("mutant", "says"),
    [
        ("tight_memory", "shared memory"),
        ("odd_address", "is not aligned to 16 bytes"),
        ("cold_capture", "a module is loaded during a capture"),
        ("host_waits_in_capture", "the host waits during a capture"),
    ],
)
def test_what_a_device_refuses_is_refused(mutant, says, tmp_path):
    code = f"import sys; from tests.device import mutants as m; m.{mutant}(sys.argv[1])"
    done = run(tmp_path, "-c", code, str(tmp_path))
    assert done.returncode != 0
    assert says in done.stderr
