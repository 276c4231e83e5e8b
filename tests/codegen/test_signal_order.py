"""Machine code announces a tile behind its last store, and mistakes in that order are seen."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overlapc.codegen import builder
from overlapc.codegen.aot import Binary, build_for, compile_kernel
from overlapc.codegen.templates import signal
from tests.codegen.machine_code import CDNA, FLOAT, paired
from tests.codegen.machine_order import (
    AMD_ADD,
    BARRIER,
    RELEASE,
    STORE,
    amd_mutants,
    amd_signal_faults,
    last_line,
    lines_of,
    signal_order_faults,
)

pytestmark = pytest.mark.usefixtures("triton_cache")


def test_a_wrong_order_is_caught_on_amd():
    text = build_for(CDNA, "gfx942").assembly
    assert amd_signal_faults(text, signals=True) == []
    assert amd_signal_faults(text, signals=False)
    (add,) = lines_of(AMD_ADD, text.splitlines())
    for name, mutant in amd_mutants(text.splitlines(), add).items():
        assert amd_signal_faults("\n".join(mutant), signals=True), name


@pytest.fixture(scope="module")
def ptx() -> str:
    text = build_for(replace(FLOAT, flatten=False), "sm_90").assembly
    assert signal_order_faults(text, signals=True) == []
    return text


TMA_STORE = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1, %r2}], [%r3];"
TMA_STORES = {
    "TMA store first": [TMA_STORE],
    "TMA store first, its reads awaited": [
        TMA_STORE,
        "cp.async.bulk.commit_group;",
        "cp.async.bulk.wait_group.read 0;",
    ],
    "TMA sum first": [TMA_STORE.replace("cp.async", "cp.reduce.async")],
}
"""In front of the last ordinary store, so with a barrier and a release behind."""


@pytest.mark.parametrize(
    "mutation",
    ["no barrier", "some threads", "store last", "TMA store last", *TMA_STORES, "relaxed", "twice",
     "silent"],
)  # fmt: skip
def test_a_wrong_order_is_caught(ptx: str, mutation: str):
    lines = ptx.splitlines()
    (release,) = lines_of(RELEASE, lines)
    store = last_line(STORE, lines, release)
    match mutation:
        case "no barrier":
            lines[store:release] = [
                line for line in lines[store:release] if not BARRIER.search(line)
            ]
        case "some threads":
            for barrier in lines_of(BARRIER, lines[store:release]):
                lines[store + barrier] = "\tbarrier.sync 1, 64;"
        case "store last":
            lines.insert(release + 1, lines[store])
        case "TMA store last":
            lines.insert(release + 1, TMA_STORE)
        case "relaxed":
            lines[release] = lines[release].replace("release", "relaxed")
        case "twice":
            lines.insert(release, lines[release])
        case _:
            lines[store:store] = TMA_STORES.get(mutation, [])
    assert signal_order_faults("\n".join(lines), signals=mutation != "silent")


@pytest.mark.parametrize(
    "mutation",
    ["no barrier", "store last", "TMA store last", *TMA_STORES, "relaxed", "early", "last tile",
     "all behind", "all among"],
)  # fmt: skip
def test_a_wrong_order_of_late_signals_is_caught(mutation: str):
    lines = build_for(FLOAT, "sm_90").assembly.splitlines()
    assert signal_order_faults("\n".join(lines), signals=True, late=True) == []
    releases = lines_of(RELEASE, lines)
    store = max(lines_of(STORE, lines))
    barrier = store + min(lines_of(BARRIER, lines[store:]))
    match mutation:
        case "no barrier":
            end = next(at for at in range(store, len(lines)) if lines[at].startswith("$L__BB"))
            lines[store:end] = [line for line in lines[store:end] if not BARRIER.search(line)]
        case "store last":
            lines.insert(barrier + 1, lines[store])
        case "TMA store last":
            lines.insert(barrier + 1, TMA_STORE)
        case "relaxed":
            for at in releases:
                lines[at] = lines[at].replace("release", "relaxed")
        case "early":
            lines.insert(barrier, lines[releases[0]])
        case "last tile":
            del lines[releases[-1]]
        case "all behind":
            lines.insert(releases[1], lines.pop(releases[0]))
        case "all among":
            lines.insert(releases[0], lines.pop(releases[1]))
        case _:
            lines[store:store] = TMA_STORES[mutation]
    assert signal_order_faults("\n".join(lines), signals=True, late=True)


def test_every_release_of_a_pipeline_that_ends_apart_is_needed():
    """Mutant: one behind the loop, or two."""
    spec = paired("sm_100", "bfloat16", "band", signals=True)
    lines = build_for(spec, "sm_100").assembly.splitlines()
    releases = lines_of(RELEASE, lines)
    assert len(releases) == 3
    for at in releases:
        without = [line for i, line in enumerate(lines) if i != at]
        assert signal_order_faults("\n".join(without), signals=True, late=True, ends=2)


def test_a_template_without_a_barrier_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = inspect.getsource(signal)
    assert source.count("    return cta_barrier(FLATTEN)\n") == 1
    path = tmp_path / "signal_without_barrier.py"
    path.write_text(source.replace("return cta_barrier(FLATTEN)", "return 0"))
    # The template finds its signal among its globals.
    kernel = builder.build(FLOAT).module.KERNEL
    text = (Path(kernel.fn.__code__.co_filename)).read_text()
    (tmp_path / "gemm.py").write_text(text)
    module = builder.load(tmp_path / "gemm.py")
    module.__dict__["await_stores"] = builder.load(path).await_stores
    monkeypatch.setattr(builder.build(FLOAT).module, "KERNEL", module.band_gemm)
    faults = signal_order_faults(build_for(FLOAT, "sm_90").assembly, signals=True, late=True)
    assert faults == ["no CTA barrier behind the last store"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120", "gfx942"])
def test_the_waiter_reads_again_and_acquires(architecture: str):
    binary = build_waiter(architecture)
    assert binary.spilled_bytes == 0
    assert binary.registers <= 32
    if architecture.startswith("sm_"):
        loop = re.search(
            r"^(\$L\w+):.*?ld\.volatile\.global.*?bra\S*\s+\1;", binary.assembly, re.S | re.M
        )
        assert loop, "the poll is not inside a loop"
        assert re.search(r"\b(atom|ld)\S*\.acquire\.", binary.assembly[loop.end() :])


def build_waiter(architecture: str) -> Binary:
    pointers = {"counters": "*i32", "failed": "*i32", "max_polls": "i64"}
    kernel: Any = signal.wait_for_group
    constants = {"COUNTER_STRIDE": 32}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    return compile_kernel(kernel, signature, constants, {}, architecture, {"num_warps": 1})
