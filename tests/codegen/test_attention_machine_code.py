"""Machine code of generated attention, built ahead of time: registers, shared memory, instructions.

The loop without a running maximum has to be the shorter one: there is nothing else to gain.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from overlapc.codegen.attention.aot import build_for
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile, tile_for
from overlapc.errors import KernelError
from tests.codegen import score_programs as programs
from tests.codegen.test_machine_code import SHARED_BYTES

SPEC = AttentionSpec("bfloat16", 128, 128, groups=4, scale=128**-0.5, after=0)
EVERYTHING = {
    "before": 1024, "align": "bottom_right", "program": programs.SOFT_CAP, "sinks": True,
    "softmax": "first_tile", "lengths": True,
}  # fmt: skip
MATRIX = {"sm_80": "mma.sync", "sm_89": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05.mma",
          "gfx942": "v_mfma"}  # fmt: skip
DIMS = [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)]


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("modules")))
        yield


def check(spec: AttentionSpec, architecture: str) -> None:
    """Raise AssertionError unless the machine code keeps its budgets."""
    binary = build_for(spec, tile_for(spec, architecture), architecture)
    assert binary.spilled_bytes == 0, f"{binary.registers} registers and {binary.spilled_bytes} B"
    assert binary.shared_bytes <= SHARED_BYTES[architecture]
    if spec.dtype != "float32":
        assert MATRIX[architecture] in binary.assembly


def test_budgets():
    check(SPEC, "sm_90")


@pytest.mark.long
@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["causal", "everything"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_every_budget(architecture, dtype, dims, change):
    precision = "tf32x3" if dtype == "float32" and architecture != "gfx942" else "ieee"
    spec = replace(SPEC, dtype=dtype, head_dim=dims[0], value_dim=dims[1], precision=precision)
    spec = replace(spec, **change)
    if dtype == "float32" and max(dims) > 128 and architecture != "gfx942":
        with pytest.raises(KernelError, match="do not fit"):
            tile_for(spec, architecture)
        return
    check(spec, architecture)


@pytest.mark.long
def test_a_tile_that_is_too_large_is_noticed():
    binary = build_for(SPEC, AttentionTile(128, 128, 4, 2), "sm_90")
    assert binary.spilled_bytes > 0


def longest_loop(assembly: str) -> list[str]:
    """PTX instructions of the longest loop without a loop inside."""
    lines = [line.partition("//")[0].strip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and line[0] not in ".{}"]
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\$L__BB\w+:", line)}
    loops = []
    for at, line in enumerate(lines):
        found = re.search(r"bra(?:\.uni)?\s+(\$\w+);", line)
        if found and labels.get(found[1], at) < at:
            body = lines[labels[found[1]] + 1 : at]
            if not any(re.fullmatch(r"\$L__BB\w+:", inner) for inner in body):
                loops.append(body)
    return max(loops, key=len)


def test_the_loop_without_a_running_maximum_is_shorter():
    everything_whole = replace(SPEC, after=None)
    tile = tile_for(SPEC, "sm_90")
    loops = {
        policy: longest_loop(
            build_for(replace(everything_whole, softmax=policy), tile, "sm_90").assembly
        )
        for policy in ("zero", "online")
    }
    assert len(loops["zero"]) < 0.8 * len(loops["online"])
