"""Every variant built ahead of time: budgets, matrix instructions, and the order of signals."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overlapc.codegen import GemmSpec, builder
from overlapc.codegen.aot import Binary, build_for, compile_kernel
from overlapc.codegen.templates import signal
from overlapc.codegen.tiles import ROOMY, TILES

BF16 = GemmSpec("bfloat16", "bfloat16", **TILES["sm_90", True])
SMALL = replace(BF16, **ROOMY)
FLOAT = GemmSpec("float32", "float32", **TILES["sm_80", False])
FLOAT_CDNA = replace(FLOAT, **TILES["gfx942", False])
TF32 = replace(FLOAT, block_m=128, block_n=128, precision="tf32", warps=8)
AMPERE = replace(BF16, **TILES["sm_80", True])
CDNA = replace(BF16, **TILES["gfx942", True])

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""Shared memory that one CTA may have, from the vendors' programming guides."""

HOPPER = {
    "bfloat16": BF16,
    "float16": replace(BF16, dtype="float16", out="float16"),
    "bias": replace(BF16, bias=True),
    "even k": replace(BF16, even_k=True),
    "row-major B": replace(BF16, b="row", even_k=True),
    "ragged k, row-major B": replace(SMALL, b="row"),
    "column-major A": replace(SMALL, a="col", b="row"),
    "strided": replace(SMALL, a="strided", b="strided"),
    "small tile": SMALL,
    "silent": SMALL.without_signals(),
    "float32": FLOAT,
    "float32 out": replace(SMALL, out="float32"),
    "tf32": TF32,
}
OTHERS = [("sm_80", AMPERE), ("sm_80", FLOAT), ("gfx942", CDNA), ("gfx942", FLOAT_CDNA)]
EVERYWHERE = [("sm_90", spec) for spec in HOPPER.values()] + OTHERS


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.mark.parametrize(
    ("architecture", "spec"), EVERYWHERE, ids=[*HOPPER, *(f"{name}" for name, _ in OTHERS)]
)
def test_budgets_and_order(architecture: str, spec: GemmSpec):
    binary = build_for(spec, architecture)
    assert binary.spilled_bytes == 0, f"{binary.registers} registers and a spill"
    assert binary.shared_bytes <= SHARED_BYTES[architecture]
    assert 32 < binary.registers <= (512 if architecture.startswith("gfx") else 255)
    assert matrix_instruction(architecture, spec) in binary.assembly
    if architecture.startswith("sm_"):
        assert signal_order_faults(binary.assembly, spec.signals) == []


def matrix_instruction(architecture: str, spec: GemmSpec) -> str:
    """What the product must be made of: losing it costs a factor, silently."""
    if spec.dtype == "float32" and spec.precision == "ieee":
        return "v_mfma_f32" if architecture.startswith("gfx") else "fma.rn.f32"
    return {"sm_90": "wgmma.mma_async", "sm_80": "mma.sync", "gfx942": "v_mfma_f32"}[architecture]


def test_unaligned_operands_can_be_built():
    assert signal_order_faults(build_for(SMALL, "sm_90", aligned=False).assembly, True) == []


def signal_order_faults(ptx: str, signals: bool) -> list[str]:
    """What is wrong with the order stores of C -> CTA barrier -> release add in this PTX.

    Every global store and the release must stand in one straight line of code, the barrier between.
    """
    releases = [line for line in ptx.splitlines() if is_release(line)]
    if not signals:
        return ["a silent kernel releases"] if releases else []
    blocks = [block.splitlines() for block in re.split(r"^\$L__BB\w+:", ptx, flags=re.MULTILINE)]
    faults = [] if len(releases) == 1 else [f"{len(releases)} release adds"]
    for block in blocks:
        stores = [
            at for at, line in enumerate(block) if "st.global" in line or "cp.async.bulk" in line
        ]
        barriers = [at for at, line in enumerate(block) if re.search(r"\bbar(rier)?\.sync", line)]
        release = next((at for at, line in enumerate(block) if is_release(line)), None)
        if release is None:
            faults += ["stores of C outside the block that releases"] * bool(stores)
        elif not stores or max(stores) > release:
            faults.append("a store after the release, or none before it")
        elif not any(max(stores) < at < release for at in barriers):
            faults.append("no CTA barrier between the last store and the release")
    return faults


def is_release(line: str) -> bool:
    # Releases of Triton differ in whether an unused result makes it a reduction.
    return bool(re.search(r"\b(red|atom)\.global\.gpu\.release\.add|"
                          r"\b(red|atom)\.(release\.gpu\.global|global\.release\.gpu)\.add|"
                          r"\b(red|atom)\.release\.gpu\.(global\.)?add", line))  # fmt: skip


@pytest.fixture(scope="module")
def ptx() -> str:
    text = build_for(FLOAT, "sm_90").assembly
    assert signal_order_faults(text, signals=True) == []
    return text


def last_line(pattern: str, lines: list[str], before: int) -> int:
    return max(at for at in range(before) if re.search(pattern, lines[at]))


@pytest.mark.parametrize("mutation", ["no barrier", "store last", "relaxed", "twice", "silent"])
def test_a_wrong_order_is_caught(ptx: str, mutation: str):
    lines = ptx.splitlines()
    release = next(at for at, line in enumerate(lines) if is_release(line))
    store = last_line(r"st\.global", lines, release)
    match mutation:
        case "no barrier":
            barriers = re.compile(r"bar(rier)?\.sync")
            lines[store:release] = [
                line for line in lines[store:release] if not barriers.search(line)
            ]
        case "store last":
            lines.insert(release + 1, lines[store])
        case "relaxed":
            lines[release] = lines[release].replace("release", "relaxed")
        case "twice":
            lines.insert(release, lines[release])
    assert signal_order_faults("\n".join(lines), signals=mutation != "silent")


def test_a_template_without_a_barrier_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = inspect.getsource(signal)
    assert source.count("    tl.debug_barrier()\n") == 1
    path = tmp_path / "signal_without_barrier.py"
    path.write_text(source.replace("    tl.debug_barrier()\n", ""))
    # The template finds its signal among its globals.
    kernel = builder.build(FLOAT).module.KERNEL
    text = (Path(kernel.fn.__code__.co_filename)).read_text()
    (tmp_path / "gemm.py").write_text(text)
    module = builder.load(tmp_path / "gemm.py")
    module.__dict__["publish"] = builder.load(path).publish
    monkeypatch.setattr(builder.build(FLOAT).module, "KERNEL", module.band_gemm)
    faults = signal_order_faults(build_for(FLOAT, "sm_90").assembly, signals=True)
    if not faults:
        pytest.skip("this release of Triton puts a barrier before a release by itself")
    assert faults == ["no CTA barrier between the last store and the release"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "gfx942"])
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
