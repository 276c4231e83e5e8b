"""Generated modules: their text, the cache that holds them, and what they do by themselves."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.codegen_time import seconds_of_each
from overlapc.codegen import GemmSpec, builder
from overlapc.codegen.module import constants, module_text
from overlapc.errors import KernelError
from tests.codegen.epilogue_cases import MODELS
from tests.ranks import SERVER

SPEC = GemmSpec("float16", "float16", 64, 32, 32, warps=2, bias=True)
TMA = GemmSpec("bfloat16", "bfloat16", 64, 32, 32, loads="descriptors")
CHECKED = {
    "bfloat16": replace(TMA, loads="pointers"),
    "descriptors, packed": replace(TMA, order="packed", b="row"),
    "a chain": replace(TMA, epilogue=str(MODELS["gated"])),
}
BUILD_SECONDS = 0.05
"""Of one site, without Triton's own import and compilation."""


@pytest.fixture(autouse=True)
def nothing_built(private_cache, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that tests start
    monkeypatch.setattr(builder, "_built", {})
    return private_cache


def test_the_text_of_a_module(golden):
    golden(module_text(SPEC))


def test_a_built_module_holds_what_its_spec_says(private_cache):
    kernel = builder.build(SPEC)
    assert kernel.path.parent == private_cache / "kernels"
    assert kernel.path.read_text() == module_text(SPEC)
    assert GemmSpec.parse(kernel.module.SPEC) == SPEC
    own = {"EPILOGUE": kernel.module.epilogue}
    assert constants(SPEC) | own == kernel.module.CONSTANTS
    options = {"num_warps": 2, "num_stages": 3, "enable_fp_fusion": True}
    assert options == kernel.module.OPTIONS
    assert builder.build(replace(SPEC)) is kernel


def test_a_constant_names_a_parameter_of_the_template():
    kernel = builder.build(SPEC)
    assert set(kernel.module.CONSTANTS) <= set(kernel.module.KERNEL.arg_names)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"KERNEL = None\n"], ids=repr)
def test_a_corrupted_module_is_generated_again(damage):
    path = builder.build(SPEC).path
    path.write_bytes(damage)
    builder._built.clear()
    assert constants(SPEC).items() <= builder.build(SPEC).module.CONSTANTS.items()
    assert path.read_text() == module_text(SPEC)


def test_other_templates_or_another_triton_are_another_entry(private_cache, monkeypatch):
    paths = {builder.module_path(module_text(SPEC), private_cache)}
    monkeypatch.setattr(builder, "_templates_hash", lambda: "edited")
    paths.add(builder.module_path(module_text(SPEC), private_cache))
    monkeypatch.setattr(builder, "_triton_version", lambda: "triton 0")
    paths.add(builder.module_path(module_text(SPEC), private_cache))
    assert len(paths) == 3


def text_of_a_build(cache_home):
    os.environ["XDG_CACHE_HOME"] = cache_home
    return builder.build(SPEC).path.read_text()


def test_many_processes_may_build_one_spec_at_once(private_cache):
    with ProcessPoolExecutor(2, mp_context=SERVER) as pool:
        texts = list(pool.map(text_of_a_build, [str(private_cache.parent)] * 2))
    assert texts == [module_text(SPEC)] * 2
    assert [path.suffix for path in (private_cache / "kernels").iterdir()] == [".py"]


def test_a_directory_that_cannot_be_written_costs_only_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(builder, "cache_dir", lambda: tmp_path / "file")
    monkeypatch.setattr(builder.tempfile, "tempdir", str(tmp_path))
    kernel = builder.build(SPEC)
    assert kernel.path.read_text() == module_text(SPEC)
    assert tmp_path in kernel.path.parents


def test_a_missing_triton_is_an_error_of_ours(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    builder._triton_version.cache_clear()
    with pytest.raises(KernelError, match="Triton cannot be imported"):
        builder.build(SPEC)


@pytest.mark.alone
def test_generating_a_site_is_quick():
    builder.build(SPEC)  # imports Triton, reads the templates
    assert statistics.median(seconds_of_each()) < BUILD_SECONDS


KEPT = """
from pathlib import Path
from overlapc.codegen import GemmSpec
from overlapc.codegen.aot import build_for
build_for(GemmSpec.parse({text!r}), "sm_80")
print(len(list(Path({cache!r}).rglob("*.cubin"))))
"""


@pytest.mark.long
def test_machine_code_is_found_on_disk_by_another_process(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))

    def built(spec: GemmSpec, seed: str) -> int:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        code = KEPT.format(text=str(spec), cache=str(tmp_path / "triton"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return int(done.stdout)

    assert [built(SPEC, "1"), built(SPEC, "2"), built(replace(SPEC, bias=False), "1")] == [1, 1, 2]


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_importing_codegen_imports_neither(name):
    code = f"import overlapc.codegen, sys; sys.exit({name!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def by_itself(path):
    """How a module ends that is run as a user would, and what it prints."""
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs modules on the GPU")
@pytest.mark.parametrize("name", CHECKED)
def test_a_module_checks_itself(name, interpreted):
    path = builder.build(CHECKED[name]).path
    # To import torch and Triton takes seconds: once is enough.
    run = by_itself if name == "bfloat16" else partial(interpreted, "module_cases.main")
    code, printed = run(str(path))
    assert code == 0
    assert "interpreter" in printed
    assert "counters [1, " in printed or "counters [2, 4]" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs modules on the GPU")
def test_a_module_that_is_wrong_says_so(interpreted):
    kernel = builder.build(SPEC)
    wrong = kernel.path.read_text().replace("product + in0", "product - in0")
    assert wrong != kernel.path.read_text()
    kernel.path.write_text(wrong)
    assert interpreted("module_cases.main", str(kernel.path))[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(4, 8)}, "dtypes"),
        ({"a": torch.zeros(4, 8).half().t().contiguous().t()}, "layout 'row'"),
        ({"b": torch.zeros(9, 6).half()}, "cannot be multiplied"),
        ({"c": torch.zeros(4, 7).half()}, "C is not"),
        ({"c": torch.zeros(6, 4).half().t()}, "C is not"),
        ({"bias": None}, "1 inputs are promised, the bias among them"),
        ({"bias": torch.zeros(5).half()}, "an input is float16\\[5\\], not the promised"),
        ({"bias": torch.zeros(6)}, "an input is float32"),
        ({"counters": None}, "counters"),
        ({"ctas": 0}, "CTAs"),
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_is_refused(change, message):
    call = {
        "a": torch.zeros(4, 8).half(),
        "b": torch.zeros(6, 8).half().t(),
        "c": torch.zeros(4, 6).half(),
        "bias": torch.zeros(6).half(),
        "bands": torch.zeros(3, dtype=torch.int32),
        "counters": torch.zeros(1, 32, dtype=torch.int32),
        "ctas": 1,
    }
    with pytest.raises(KernelError, match=message):
        builder.build(SPEC)(**(call | change))


def test_a_k_that_is_not_even_is_refused():
    kernel = builder.build(replace(SPEC, even_k=True, bias=False, signals=False))
    a, b, c = torch.zeros(4, 33).half(), torch.zeros(6, 33).half().t(), torch.zeros(4, 6).half()
    with pytest.raises(KernelError, match="not a multiple of 32"):
        kernel(a, b, c, ctas=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(4, 36).half()[:, 4:]}, "aligned"),
        ({"a": torch.zeros(4, 33).half()[:, :32]}, "aligned"),
        ({"b": torch.zeros(6, 33).half().t()[:32]}, "aligned"),
        ({"a": torch.zeros(4, 0).half(), "b": torch.zeros(6, 0).half().t()}, "aligned"),
    ],
)
def test_descriptors_refuse_what_the_tma_unit_cannot_read(change, message):
    kernel = builder.build(replace(SPEC, bias=False, signals=False, loads="descriptors"))
    call = {"a": torch.zeros(4, 32).half(), "b": torch.zeros(6, 32).half().t(),
            "c": torch.zeros(4, 6).half(), "ctas": 1} | change  # fmt: skip
    with pytest.raises(KernelError, match=message):
        kernel(**call)


def test_a_packed_c_is_whole_tiles():
    kernel = builder.build(replace(SPEC, bias=False, signals=False, order="packed"))
    a, b = torch.zeros(4, 8).half(), torch.zeros(6, 8).half().t()
    with pytest.raises(KernelError, match="C is not a contiguous \\[2048\\]"):
        kernel(a, b, torch.zeros(4, 6).half(), ctas=1)


def test_an_empty_c_launches_nothing():
    kernel = builder.build(replace(SPEC, bias=False, signals=False))
    a, b, c = torch.zeros(0, 8).half(), torch.zeros(6, 8).half().t(), torch.zeros(0, 6).half()
    assert kernel(a, b, c, ctas=1) is None
