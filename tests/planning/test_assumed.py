"""GPUs that no shipped target describes: what is assumed of them, and what is said without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.planning.assumed import with_assumed
from overlapc.planning.candidates import top_plans
from overlapc.planning.curve import Curve
from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.planning.signaled import why_no_overlap
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS
from overlapc.tuning.chains import _candidates

PROBLEM = Problem(8192, 8192, 4096, "bfloat16", "all_reduce", 4, kernel_sums=MOST_SUMS)


def measured(architecture: str, multiprocessors: int, sent_per_second: float) -> Target:
    """What calibration measures of four such GPUs: no field that kernels need."""
    known = Target.load("a100-nvlink")
    curve = Curve(((1 << 14, 3e-5), (1 << 30, 1.5 * (1 << 30) / sent_per_second)))
    link = next(its for its in known.links if its.collective == "all_reduce")
    return replace(
        known,
        gemm=tuple(replace(rates, resident=multiprocessors) for rates in known.gemm),
        links=(replace(link, alone=curve, queued=curve),),
        architecture=architecture,
        communication_sms=0,
        signal_seconds=0.0,
        tile_seconds=0.0,
        l2_bytes=0,
        l2_bytes_per_second=None,
        source=(),
    )


@pytest.mark.parametrize(
    ("architecture", "multiprocessors", "sent_per_second", "sms", "relative"),
    [
        ("sm_80", 108, 160e9, 13, "a100-nvlink"),  # A800
        ("sm_86", 84, 16e9, 2, "a100-nvlink"),  # A6000, over PCIe
        ("sm_89", 142, 20e9, 2, "rtx4090-pcie"),  # L40S
        ("sm_90", 78, 350e9, 16, "h100-nvlink"),  # H20
        ("sm_100", 148, 700e9, 16, "h100-nvlink"),  # B200
        ("sm_120", 170, 40e9, 4, "h100-nvlink"),  # RTX 5090
        ("gfx942", 304, 300e9, 24, "mi300x"),  # MI325X
    ],
)
def test_kernels_are_tried_on_a_gpu_that_is_not_shipped(
    architecture: str, multiprocessors: int, sent_per_second: float, sms: int, relative: str
) -> None:
    """Mutant: an older one is taken for none, or the link does not count."""
    bare = measured(architecture, multiprocessors, sent_per_second)
    assert not any(made.tile for made in top_plans(PROBLEM, bare))
    target, shipped = with_assumed(bare, l2_bytes=123), Target.load(relative)
    assert sum(bool(made.tile) for made in top_plans(PROBLEM, target)) >= 3
    assert (target.communication_sms, target.l2_bytes) == (sms, 123)
    assert target.signal_seconds == shipped.signal_seconds > 0
    each = [(its.l2_bytes_per_second or 0) / its.gemm[0].resident for its in (target, shipped)]
    assert each[0] == pytest.approx(each[1])
    assert each[0] > 0
    assert target.source[0].origin.startswith(f"assumed: {sms}")
    assert all(relative in source.origin for source in target.source if source.about != "l2_bytes")
    assert with_assumed(bare).l2_bytes == shipped.l2_bytes


@pytest.mark.parametrize("name", ["a100-nvlink", "h100-nvlink", "rtx4090-pcie"])
def test_what_is_assumed_is_what_shipped_targets_have(name: str) -> None:
    shipped = Target.load(name)
    bare = replace(shipped, communication_sms=0, l2_bytes_per_second=None, signal_seconds=0.0)
    assert replace(with_assumed(bare), source=shipped.source) == shipped


@pytest.mark.parametrize("architecture", ["", "sm_75", "gfx90a", "gfx1100"])
def test_nothing_is_assumed_where_no_relative_is_known(architecture: str) -> None:
    bare = measured(architecture, 68, 16e9)
    assert with_assumed(bare) == bare


def test_a_kernel_that_leaves_no_multiprocessor_overlaps_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its groups would all wait for its end: one it is, and report and log say why.

    Mutants: groups as elsewhere, which predict 1.3 times less; a trial that says nothing.
    """
    bare = measured("sm_80", 108, 160e9)
    made = plan(PROBLEM, bare, "signaled")
    assert made.rows == (PROBLEM.m,)
    assert "leaves no multiprocessor" in made.reason
    assert made.predicted_seconds >= bare.link(PROBLEM).alone.seconds(PROBLEM.sent_bytes(8192))
    assert not any(made.tile for made in _candidates(PROBLEM, bare))
    assert "kernel is tried for gemm_all_reduce 8192x8192x4096: target a100" in caplog.text
    caplog.clear()
    assert any(made.tile for made in _candidates(PROBLEM, with_assumed(bare)))
    assert not caplog.text


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (replace(PROBLEM, kernel_sums=0), "what is computed before"),
        (replace(PROBLEM, collective="all_gather"), "after the collective"),
        (PROBLEM, ""),
    ],
)
def test_it_is_said_why_no_kernel_overlaps(problem: Problem, why: str) -> None:
    said = why_no_overlap(problem, Target.load("h100-nvlink"))
    assert why in said
    assert bool(why) == bool(said)
