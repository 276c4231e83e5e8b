"""``overlapc bench``: it finds the benchmarks in a checkout, and says so where there are none."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from overlapc.cli import BENCHMARKS

ROOT = Path(__file__).parents[2]


def overlapc(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "overlapc", "bench", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_every_name_is_a_module() -> None:
    assert all(find_spec(f"benchmarks.{module}") for module in BENCHMARKS.values())


def test_arguments_are_those_of_the_benchmark(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    done = overlapc("plot", str(missing), cwd=ROOT)
    assert "none.json" in done.stderr
    assert "not here" not in done.stderr
    assert "--collective" in overlapc("chains", "--help", cwd=ROOT).stdout


def test_outside_of_a_checkout_there_are_none(tmp_path: Path) -> None:
    done = overlapc("chains", "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: The benchmarks are not here" in done.stderr
    assert "remedy: run it in the root of a clone" in done.stderr


def test_a_benchmark_that_lacks_another_module_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "overlap_link").mkdir(parents=True)
    (tmp_path / "benchmarks" / "overlap_link" / "__main__.py").write_text("import absent_module\n")
    done = overlapc("chains", cwd=tmp_path)
    assert "No module named 'absent_module'" in done.stderr
    assert "not here" not in done.stderr


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_is_the_benchmark_s(tmp_path: Path, code: int) -> None:
    (tmp_path / "benchmarks" / "plan_quality").mkdir(parents=True)
    text = f"import sys\ndef main():\n    print(sys.argv)\n    return {code}\n"
    (tmp_path / "benchmarks" / "plan_quality" / "__main__.py").write_text(text)
    done = overlapc("plans", "--quick", cwd=tmp_path)
    assert done.returncode == code
    assert "['benchmarks.plan_quality.__main__', '--quick']" in done.stdout
