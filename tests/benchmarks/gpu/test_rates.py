"""Numbers of a target: read off measured times, and planned with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.gpu.gemm import links as gpu_links
from benchmarks.gpu.gemm import part as gpu_gemm
from benchmarks.gpu.gemm import rates as gpu_rates
from benchmarks.gpu.gemm.emulated_link import LINKS, RING_PASSES
from benchmarks.gpu.gemm.shapes import SHAPES
from overlapc.codegen.aot import compile_kernel
from overlapc.planning.target import Target
from overlapc.planning.tiles import tiles_for
from tests.codegen.machine_order import signal_order_faults

H200 = Target.load("h200-nvlink")


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


def test_the_measured_signal_is_built_for_hopper(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel: Any = gpu_rates.announce
    signature = {"times": "*i64", "counter": "*i32", "delay_ns": "i32"}
    text = compile_kernel(kernel, signature, {}, {}, "sm_90", {"num_warps": 1}).assembly
    # The time is noted, and then the counter bumped as a tile's is.
    assert signal_order_faults(text, signals=True) == []
