"""The emulated link: what it moves, how long that takes, and its machine code."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.gpu.gemm.emulated_link import BLOCK, LINKS, RING_PASSES, WARPS, paced_copy
from overlapc.codegen.aot import compile_kernel


@pytest.mark.parametrize("collective", RING_PASSES)
@pytest.mark.parametrize("sizes", [(1, 5), (3, 20000), (7, 40000)], ids=str)
def test_an_emulated_collective_moves_twice_its_link_bytes(interpreted, collective, sizes):
    link_bytes, stored = interpreted(
        "benchmarks.gpu.link_cases.copies_whole_bands", collective, *sizes
    )
    # As many are read as stored, and everything arrives; what is kept is stored twice.
    least = max(link_bytes, 4 * sizes[0] * sizes[1])
    kept = 4 * sizes[1] * (collective == "reduce_scatter")
    assert least + kept <= stored <= least + kept + 4 * BLOCK


def test_an_emulated_collective_takes_its_time(interpreted):
    nominal, taken = interpreted("benchmarks.gpu.link_cases.takes_its_time", 0.1)
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
