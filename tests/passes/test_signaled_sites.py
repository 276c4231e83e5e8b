"""What a report says of sites whose plan is signaled: what computes them, and why."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from overlapc import ledger
from overlapc.planning.search import plan_gemm
from overlapc.planning.target import Target
from overlapc.planning.tuned import TunedPlan
from overlapc.reporting.records import Site
from overlapc.runtime import ops
from tests.passes.catalogue import REWRITES, all_reduce

M, N, K = 2048, 1024, 512
TARGET = "h100-nvlink"


def operands(device: str = "meta") -> tuple[torch.Tensor, torch.Tensor]:
    x, w = (torch.empty(s, device=device, dtype=torch.float16) for s in ((M, K), (N, K)))
    return x, w


def plain(x, w):
    return all_reduce(x @ w.t())


def scatters(x, w):
    return functional.reduce_scatter_tensor(torch.relu(x @ w.t()), "sum", 0, "0")


def scatters_sums(x, w):
    return functional.reduce_scatter_tensor(x @ w.t(), "sum", 0, "0")


def exchanges(x, w):
    return functional.all_to_all_single(x @ w.t(), None, None, "0")


def normalises(x, w):
    return all_reduce(torch.softmax(x @ w.t(), -1))


def keeps(x, w):
    c = x @ w.t()
    return all_reduce(c.relu()), c


def gathers(x, w):
    return functional.all_gather_tensor(x, 0, "0") @ w.t()


@pytest.fixture
def sites(explained):
    def run(function, *args, **options):
        with torch.no_grad():
            options = {"target": TARGET, "overlap": "signaled", **options}
            return explained(function, *args, **options).report.sites

    return run


@pytest.mark.parametrize("function", [plain, scatters, exchanges])
def test_a_kernel_computes_what_it_can(function, sites):
    (site,) = sites(function, *operands())
    assert (site.decision, site.code, site.plan.schedule) == ("rewritten", "forced", "signaled")
    assert "library" not in site.reason


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (normalises, "ends the epilogue"),
        (keeps, "No kernel stores a value beside what is sent."),
    ],
)
def test_what_no_kernel_computes_is_said(function, why, sites):
    (site,) = sites(function, *operands("cpu"))
    assert (site.decision, site.code, site.plan.schedule) == (
        "rewritten", "not_signaled", "signaled",
    )  # fmt: skip
    assert "The library computes its groups: " in site.reason
    assert why in site.reason


def test_a_device_that_cannot_signal_is_said(sites):
    (site,) = sites(plain, *operands("cpu"))
    assert site.code == "not_signaled"
    assert site.reason.endswith("Its operands are on cpu, and only GPUs signal.")


@pytest.mark.parametrize("architecture", ["gfx1100", "gfx90a"])
def test_an_architecture_without_kernels_is_said(architecture, sites, tmp_path):
    """What its GEMMs and links take was measured, and no kernel was ever built for it."""
    path = tmp_path / "target.json"
    replace(Target.load("mi300x"), architecture=architecture).save(path)
    (site,) = sites(plain, *operands(), target=str(path))
    assert (site.code, site.plan.schedule) == ("not_signaled", "signaled")
    why = f"No GEMM is generated for float16 by float16 on {architecture}."
    assert site.reason.endswith(f"The library computes its groups: {why}")


@pytest.mark.parametrize(
    ("function", "collective"), [(plain, "all_reduce"), (scatters_sums, "reduce_scatter")]
)
def test_a_kernel_is_taken_once_it_has_won_its_trial(function, collective, sites, tmp_path):
    """What is tuned for a problem of `plan_gemm` is what the same GEMM in a graph takes."""
    target, path = Target.load(TARGET), tmp_path / "tuned.json"
    asked = plan_gemm(
        m=M, n=N, k=K, collective=collective, world_size=dist.get_world_size(), dtype="float16",
        target=target, schedule="signaled", order="gemm_first",
    )  # fmt: skip
    tuned = TunedPlan(asked.problem.resolved(), asked.rows, 1e-3, asked.by, asked.tile)
    replace(target, tuned=(tuned,)).save(path)
    (untried,) = sites(function, *operands(), overlap="auto")
    assert untried.plan.schedule != "signaled"
    (site,) = sites(function, *operands(), overlap="auto", target=str(path))
    assert (site.decision, site.code) == ("rewritten", "measured_best")
    assert (site.plan.tile, site.plan.rows) == (asked.tile, asked.rows)


def test_a_consumer_has_nothing_to_signal(sites):
    (site,) = sites(gathers, *operands("cpu"))
    assert (site.plan.schedule, site.code) == ("serial", "serial_consumer")


def test_rows_that_vary_are_read_as_hints(sites):
    x, w = operands()
    torch._dynamo.mark_dynamic(x, 0)
    (site,) = sites(plain, x, w)
    assert (site.code, site.shape.startswith("~")) == ("forced", True)


def test_a_report_tells_what_the_library_computed_at_calls():
    site = Site(
        id="told.0", kind="gemm_all_reduce", decision="rewritten", code="forced",
        reason="The schedule 'signaled' was asked for.", graph="inference", where="here",
    )  # fmt: skip
    ops.calls_of("told.0").update({"signaled": 2, "chunked": 3})
    ops.by_library_of("told.0").update({"It was first called in a graph capture.": 3})
    told = ledger._as_called(site)
    assert told.reason == (
        "The schedule 'signaled' was asked for. "
        "The library computed 3 calls: It was first called in a graph capture."
    )
    assert told.calls == {"signaled": 2, "chunked": 3}


@pytest.mark.long
def test_of_every_spelling_it_is_said_what_computes_it(sites, golden):
    """What only a device is missing for is a kernel's on a GPU."""
    lines = []
    for name, spelling in REWRITES.items():
        torch.manual_seed(0)
        for site in sites(spelling.function, *spelling.inputs()):
            why = re.sub(r":\d+\)", ")", site.reason.rpartition("computes its groups: ")[2])
            lines.append(f"{name}: {site.kind} [{site.code}] {why}")
    assert not [line for line in lines if "[internal]" in line]
    golden("\n".join(lines))
