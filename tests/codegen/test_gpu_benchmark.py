"""What can be known of the GPU benchmark without a GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.emulated_link import BLOCK, WARPS, nvlink_like, paced_copy, pcie_like
from overlapc.codegen.aot import compile_kernel


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert gpu.main(["gemm"]) == 2
    assert capsys.readouterr().err == (
        "nothing measured: torch.cuda.is_available() is false here\n"
    )


@pytest.mark.parametrize("arguments", [[], ["sorting"], ["gemm", "--minutes", "nine"]], ids=str)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        gpu.main(arguments)


def test_a_whole_run_writes_its_tables(interpreted, tmp_path):
    data, page = interpreted("benchmark_cases.dry_run", str(tmp_path))
    result = json.loads((tmp_path / data).read_text())
    assert result["about"]["device"] == "CPU, 20 SMs"
    assert set(result) == {"about", "checked", "speed", "overlap over an emulated link"}
    assert result["speed"][0]["rounds"] == 2
    assert result["speed"][0]["ms"]["ours, 8 bands"] > 0
    rows = result["overlap over an emulated link"]
    assert [row["emulated link"] for row in rows] == ["NVLink-like", "PCIe-like"]
    assert set(rows[0]["share of bound"]) == {"2 bands"}
    text = (tmp_path / page).read_text()
    assert "| ms: signaled, 2 bands |" in text
    assert "emulated" in text


def test_the_checks_of_the_benchmark_pass_where_the_interpreter_is_right(interpreted):
    errors = interpreted("benchmark_cases.float16_is_checked")
    assert len(errors) == 2
    assert max(errors) <= 1


def test_a_table_holds_every_column_of_every_row():
    rows = [{"a": 1.0, "b": {"x": [1.0, 0.9, 1.1]}}, {"a": 2.0, "c": "text"}]
    assert gpu.table([gpu.flat(row) for row in rows]) == [
        "| a | 1 | 2 |",
        "| --- | --- | --- |",
        "| b: x | 1.000 [0.900, 1.100] |  |",
        "| c |  | text |",
    ]


@pytest.mark.parametrize("sizes", [(1, 5), (3, 20000), (7, 40000)], ids=str)
def test_an_emulated_collective_moves_twice_its_link_bytes(interpreted, sizes):
    link_bytes, stored = interpreted("link_cases.copies_whole_bands", *sizes)
    # As many are read as stored.
    assert link_bytes <= stored <= link_bytes + 4 * BLOCK


def test_an_emulated_collective_takes_its_time(interpreted):
    nominal, taken = interpreted("link_cases.takes_its_time", 0.1)
    assert nominal <= taken < 2 * nominal


@pytest.mark.parametrize("link", [nvlink_like(16), pcie_like(8)], ids=lambda link: link.name)
def test_a_ring_sends_nearly_twice_the_bytes(link):
    assert link.link_bytes(8_000_000) == 2 * (link.ranks - 1) * 8_000_000 / link.ranks
    assert link.seconds(0) == link.alpha_seconds


def test_the_paced_copy_is_built_for_hopper(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel: Any = paced_copy
    constants = {"PACED": True, "BLOCK": BLOCK}
    pointers = {"source": "*bf16", "target": "*bf16"}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    aligned = {(at,): [["tt.divisibility", 16]] for at in range(3)}
    binary = compile_kernel(kernel, signature, constants, aligned, "sm_90", {"num_warps": WARPS})
    assert binary.spilled_bytes == 0
    assert "ld.global.v4" in binary.assembly
    # Read at the start, and again and again in the loop that waits.
    assert binary.assembly.count("%globaltimer;") == 2
