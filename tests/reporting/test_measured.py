"""What ``overlapc calibrate`` prints of a target."""

from __future__ import annotations

from dataclasses import replace

from overlapc.planning.curve import Curve
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target
from overlapc.reporting.measured import describe_target

CURVE = Curve(((4096, 5e-4), (1 << 20, 4e-3), (1 << 24, 0.064)))

TARGET = Target(
    name="cpu-gloo-2",
    device="cpu",
    backend="gloo",
    is_measured=True,
    gemm=(
        GemmRates(
            "float32",
            4.56e10,
            1.2e-5,
            pack_bytes_per_second=2.5e9,
            pointwise_bytes_per_second=7.5e9,
        ),
        GemmRates("bfloat16", 9.1e14, 4e-6, memory_bytes_per_second=4.8e12),
    ),
    links=(
        Link("all_reduce", 2, CURVE, CURVE, compute_slowdown=1.25, link_slowdown=1.1),
        Link("all_gather", 2, Curve(((4096, 5e-4),)), CURVE),
    ),
    compute_slowdown=1.5,
    link_slowdown=1.75,
)


def test_every_figure_is_told_in_its_unit():
    assert describe_target(TARGET).splitlines() == [
        "  GEMM of float32: 45.6 GFLOP/s, 12 us a call, weights packed at 2.5 GB/s, "
        "pointwise work at 7.5 GB/s",
        "  GEMM of bfloat16: 910 TFLOP/s, 4 us a call, operands read at 4.8 TB/s",
        "  all_reduce over 2 ranks: 3 sizes, 4.1 kB in 500 us to 16.8 MB in 64 ms, 262 MB/s",
        "    side by side, compute takes 1.25 times as long and this collective 1.10 times",
        "  all_gather over 2 ranks: 1 sizes, 4.1 kB in 500 us to 4.1 kB in 500 us, 8.19 MB/s",
        "    side by side, compute takes 1.50 times as long and this collective 1.75 times",
    ]


def test_a_group_of_one_rank_says_that_it_has_no_link():
    assert "no link" in describe_target(replace(TARGET, links=()))
