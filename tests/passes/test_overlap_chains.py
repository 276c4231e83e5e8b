"""What becomes of a chain: models that torch parallelises, options, and what a site says."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._dynamo.exc import BackendCompilerFailed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from overlapc import backend
from overlapc.errors import OptionError, TargetError
from overlapc.planning.search import plan
from overlapc.planning.target import stored_path
from overlapc.planning.tuned import TunedPlan
from tests.passes.catalogue import (
    COLUMNS,
    INNER,
    ROWS,
    all_reduce,
    functional_mm,
    in_place,
    weight,
    x2,
    x3,
)
from tests.targets import FAST_LINK, SLOW_LINK, machine


class Mlp(torch.nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.up = torch.nn.Linear(INNER, 2 * COLUMNS, bias=bias)
        self.down = torch.nn.Linear(2 * COLUMNS, INNER, bias=bias)

    def forward(self, x):
        return self.down(self.up(x).relu())


@pytest.mark.parametrize("bias", [False, True])
def test_tensor_parallel_plan_forward_and_backward(bias, explained, golden):
    mesh = init_device_mesh("cpu", (2,))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(Mlp(bias), mesh, plan)
    result = explained(model, x3().requires_grad_(), target=SLOW_LINK)
    golden(result.text())
    found = [(site.graph, site.decision, site.where.split()[0]) for site in result.report.sites]
    assert found == [("forward", "rewritten", "down"), ("backward", "rewritten", "up")]


class Block(torch.nn.Module):
    """A pre-norm feed-forward block with two column-wise GEMMs, as in Llama."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(INNER)
        self.ffn = FeedForward()

    def forward(self, x):
        return x + self.ffn(self.norm(x))


class FeedForward(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = torch.nn.Linear(INNER, COLUMNS)
        self.up = torch.nn.Linear(INNER, COLUMNS)
        self.down = torch.nn.Linear(COLUMNS, INNER)

    def forward(self, x):
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


def sequence_plan(dim):
    """Activations between blocks are sharded along ``dim``; gathered once for gate and up."""
    shard = Shard(dim)
    gather = PrepareModuleInput(input_layouts=(shard,), desired_input_layouts=(Replicate(),))
    return {
        "norm": SequenceParallel(sequence_dim=dim),
        "ffn": gather,
        "ffn.gate": ColwiseParallel(),
        "ffn.up": ColwiseParallel(),
        "ffn.down": RowwiseParallel(output_layouts=shard),
    }


SEQUENCE_SITES = [
    ("forward", "all_gather_gemm", "rewritten"),
    ("forward", "gemm_reduce_scatter", "rewritten"),
    ("backward", "all_gather_gemm", "rewritten"),
    ("backward", "gemm_reduce_scatter", "rewritten"),
]


def kinds(report):
    return [(site.graph, site.kind, site.decision) for site in report.sites]


@pytest.mark.parametrize("varying", [False, True], ids=["fixed", "varying"])
@pytest.mark.parametrize("dim", [0, 1])
def test_sequence_parallel(dim, varying, explained, golden):
    model = parallelize_module(Block(), init_device_mesh("cpu", (2,)), sequence_plan(dim))
    x = x3()
    if varying:
        torch._dynamo.mark_dynamic(x, dim)
    result = explained(model, x.requires_grad_(), target=SLOW_LINK)
    assert sorted(kinds(result.report)) == sorted(SEQUENCE_SITES)
    golden(result.text())


@pytest.mark.parametrize("dim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_sequence_parallel_plan_whose_sizes_all_vary(dim, explained):
    model = parallelize_module(Block(), init_device_mesh("cpu", (2,)), sequence_plan(dim))
    with torch.no_grad():
        result = explained(model, x3()[:, :100], target=SLOW_LINK, dynamic=True)
    assert {site.decision for site in result.report.sites} == {"rewritten"}
    assert {site.kind for site in result.report.sites} == {kind for _, kind, _ in SEQUENCE_SITES}


def test_activation_checkpointing_hides_no_site(explained):
    from torch.utils.checkpoint import checkpoint

    def checkpointed(x, w):
        return checkpoint(functional_mm, x, w, use_reentrant=False)

    result = explained(checkpointed, x2().requires_grad_(), weight(), target=SLOW_LINK)
    assert "rewritten" in {site.decision for site in result.report.sites}


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({"target": FAST_LINK}, "kept"),
        ({"target": SLOW_LINK, "overlap": "off"}, "refused"),
        ({"target": SLOW_LINK, "fuel": 0}, "kept"),
        ({"target": SLOW_LINK, "disable": ("overlap_chains",)}, "refused"),
        ({"target": SLOW_LINK, "disable": ("all",)}, "refused"),
    ],
)
def test_options_that_leave_the_graph_unchanged(options, decision, explained):
    with torch.no_grad():
        result = explained(in_place, x2(), weight(), **options)
    assert all(before == after for before, after in result.graphs.values())
    assert [site.decision for site in result.report.sites] == [decision]


def test_a_pass_that_does_not_exist_cannot_be_disabled(explained):
    with pytest.raises(OptionError, match="overlap_chains"):
        explained(in_place, x2(), weight(), disable=("overlap_chain",))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"disable": ("overlap_chains",)}, "leaves out overlap_chains."),
        ({"disable": ("all",)}, "leaves out all."),
        ({"inductor": {"cpp_wrapper": True}}, "cpp_wrapper cannot write"),
        ({"inductor": {"cpp-wrapper": True}}, "cpp_wrapper cannot write"),
    ],
)
def test_what_leaves_passes_out_is_named(explained, options, reason):
    with torch.no_grad():
        result = explained(in_place, x2(), weight(), target=FAST_LINK, overlap="chunked", **options)
    (site,) = result.report.sites
    assert (site.decision, site.code) == ("refused", "disabled")
    assert reason in site.reason
    assert all("overlapc" not in after for _, after in result.graphs.values())


@pytest.mark.parametrize("verify", [False, True], ids=["", "verify"])
def test_a_stored_target_that_cannot_be_read_refuses_its_sites(explained, verify):
    """Nothing to plan for is no error of the program; what "auto" found and why is said."""
    path = stored_path("cpu-fake-2")
    path.parent.mkdir(parents=True)
    path.write_text('{"overlapc_target": 99}')
    with torch.no_grad():
        result = explained(in_place, x2(), weight(), verify=verify)
    (site,) = result.report.sites
    assert (site.decision, site.code) == ("refused", "no_target")
    assert "format 99" in site.reason
    assert "Remedy: calibrate again with this version" in site.reason
    assert all((before != after) == verify for before, after in result.graphs.values())


@pytest.mark.parametrize("target", ["cpu-gloo-2", "absent/machine.json"])
def test_a_target_that_is_not_there_is_an_error_before_anything_is_compiled(
    fake_group, monkeypatch, tmp_path, target
):
    """The mutant that loads it in a pass compiles first, or on a warm cache never."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []
    monkeypatch.setattr(backend, "compile_fx", lambda *args, **_: compiled.append(args))
    function = torch.compile(in_place, backend="overlapc", options={"target": target})
    with pytest.raises(BackendCompilerFailed) as caught, torch.no_grad():
        function(x2(), weight())
    error = caught.value.inner_exception
    assert isinstance(error, TargetError)
    assert target in str(error)
    assert "overlapc calibrate" in error.remedy
    assert not compiled


def test_forced_schedule_is_obeyed_where_it_does_not_pay(explained):
    with torch.no_grad():
        result = explained(in_place, x2(), weight(), target=FAST_LINK, overlap="chunked")
    (site,) = result.report.sites
    assert (site.decision, site.plan.schedule) == ("rewritten", "chunked")


def test_group_of_one_rank_is_kept(explained):
    alone = dist.new_group([0])

    def one_rank(x, w):
        return functional.all_reduce(x @ w.t(), "sum", alone)

    options = {"target": SLOW_LINK, "disable": ("drop_lone_collectives",)}
    with torch.no_grad():
        result = explained(one_rank, x2(), weight(), **options)
    assert [site.decision for site in result.report.sites] == ["kept"]


def test_the_ninth_explanation_says_as_much_as_the_first(explained):
    """Each adds an entry to Dynamo's cache of the function, which has room for eight."""
    x, w = x2(), weight()
    with torch.no_grad():
        for _ in range(10):
            assert len(explained(in_place, x, w, target=SLOW_LINK).report.sites) == 1


def test_meta_tensors_are_explained(explained):
    with torch.device("meta"):
        model = torch.nn.Linear(INNER, COLUMNS, bias=False)
        x = torch.randn(ROWS, INNER)
    with torch.no_grad():
        result = explained(lambda x: all_reduce(model(x)), x, target=SLOW_LINK)
    assert [site.decision for site in result.report.sites] == ["rewritten"]


@pytest.mark.parametrize("dim", [0, 1])
def test_a_model_on_meta_tensors_is_explained_with_its_backward(dim, explained):
    with torch.device("meta"):
        block, x = Block(), x3()
    model = parallelize_module(block, init_device_mesh("cpu", (2,)), sequence_plan(dim))
    result = explained(model, x.requires_grad_(), target=SLOW_LINK)
    assert sorted(kinds(result.report)) == sorted(SEQUENCE_SITES)


def test_a_signaled_site_dumps_the_module_that_checks_itself(explained, tmp_path, interpreted):
    """Planned for a GPU that is not here; the module runs in Triton's interpreter."""
    x, w = torch.randn(2048, 512, dtype=torch.float16), torch.randn(1024, 512, dtype=torch.float16)
    with torch.no_grad():
        result = explained(functional_mm, x, w, target="h100-nvlink", overlap="signaled")
    (site,) = result.report.sites
    assert (site.decision, site.plan.schedule) == ("rewritten", "signaled")
    (module,) = tmp_path.glob("dump/*/site_00.py")
    ended, printed = interpreted("module_cases.main", str(module))
    assert ended == 0, printed


def test_explain_says_at_which_rows_the_schedule_changes(explained):
    x = x3()
    torch._dynamo.mark_dynamic(x, 1)
    with torch.no_grad():
        # So few columns are one unit: only rows can be cut, and few rows cannot.
        (site,) = explained(in_place, x, weight()[:64], target=SLOW_LINK).report.sites
    found = re.search(
        r"With 4\*(s\d+) rows: serial at \1 = 1, chunked from \1 = (\d+)", site.reason
    )
    assert found is not None
    changes = int(found[2])
    schedules = [plan_of(site.plan.problem, 4 * n).schedule for n in (changes - 1, changes)]
    assert schedules == ["serial", "chunked"]


def plan_of(problem, rows):
    return plan(dataclasses.replace(problem, m=rows), SLOW_LINK)


@pytest.mark.parametrize("bytes_per_second", [4e7, 1e15], ids=["rewritten", "kept"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_curve_of_another_group_size_is_told(explained, bytes_per_second, ranks):
    target = machine(f"of-{ranks}", bytes_per_second, world_sizes=(ranks,))

    def reduced(x, w):
        return functional.all_reduce(x @ w, "sum", dist.group.WORLD)

    inputs = torch.randn(512, 64), torch.randn(64, 96)
    (site,) = explained(reduced, *inputs, target=target).report.sites
    assert site.decision == ("rewritten" if bytes_per_second == 4e7 else "kept")
    told = f"Target of-{ranks} knows all_reduce among {ranks} ranks, not 2"
    assert (told in site.reason) == (ranks == 4)


@pytest.mark.parametrize("rows", [26, 52])
def test_a_measured_plan_decides_where_rows_may_differ(explained, rows):
    """Equal splits on one rank say nothing of the others, so that their numbers do not decide."""

    def scattered(x, w):
        out = functional.all_to_all_single(x @ w, None, None, dist.group.WORLD)
        return functional.wait_tensor(out)

    inputs = torch.randn(26, 5), torch.randn(5, 33)
    (before,) = explained(scattered, *inputs, target=FAST_LINK).report.sites
    assert before.decision == "kept"
    problem = dataclasses.replace(before.plan.problem, m=rows).resolved()
    tuned = TunedPlan(problem, (12, rows - 12), 1e-6)
    target = dataclasses.replace(FAST_LINK, name=f"tuned-{rows}", tuned=(tuned,))
    (site,) = explained(scattered, *inputs, target=target).report.sites
    assert site.decision == "rewritten"
    assert site.code == ("measured_best" if rows == 26 else "varying_rows")


def activated(x, w):
    return functional.all_reduce(torch.nn.functional.silu(x @ w), "sum", dist.group.WORLD)


@pytest.mark.parametrize("varies", [False, True])
def test_steps_between_gemms_are_one_pass_in_what_is_planned(explained, varies):
    """The op computes SiLU in one kernel, as Inductor does: a cut costs no more than its GEMMs and
    one pass, at row counts too that are not cut. Mutant: each step counted."""
    x, target = torch.randn(8192, 64), machine("pointwise", 4e7)
    if varies:
        torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        result = explained(activated, x, torch.randn(64, 16), target=target)
    (site,) = result.report.sites
    assert (site.decision, site.code) == ("rewritten", "chunked_overlaps")
    assert site.plan.problem.epilogue_bytes == 8192 * 16 * 4


@pytest.mark.parametrize("varies", [False, True])
def test_what_is_asked_to_run_serial_is_left_to_inductor(explained, varies):
    """Whose kernels are fewer than the steps of an op. Mutant: an op that runs the serial plan."""
    x = torch.randn(2048, 64)
    if varies:
        torch._dynamo.mark_dynamic(x, 0)
    options = {"target": SLOW_LINK, "overlap": "serial"}
    with torch.no_grad():
        result = explained(activated, x, torch.randn(64, 16), **options)
    (site,) = result.report.sites
    assert (site.decision, site.code, site.plan.schedule) == ("kept", "forced", "serial")
    assert all(before == after for before, after in result.graphs.values())


@pytest.mark.parametrize("batch", [4, pytest.param(2, marks=pytest.mark.long)])
def test_how_many_blocks_a_hint_says_decides_nothing(batch, explained):
    """Gathered along the sequence, rows come in a block a batch; a rank may have another hint.

    Mutant: measured problems of other blocks are not tried.
    """

    def function(x, w):
        return functional.all_gather_tensor(x, 1, dist.group.WORLD) @ w

    def site(target, batch):
        given = torch.randn(batch, 16, 32), torch.randn(32, 48)
        return explained(function, *given, dynamic=True, target=target).report.sites[0]

    problem = site(FAST_LINK, 2).plan.problem.resolved()
    assert problem.blocks == 2
    first = problem.m // problem.granule // 4 * problem.granule
    tuned = TunedPlan(problem, (first, problem.m - first), 1e-12)
    target = dataclasses.replace(FAST_LINK, tuned=(tuned,))
    assert site(FAST_LINK, batch).decision == "kept"
    assert site(target, batch).decision == "rewritten"


@pytest.mark.parametrize("rows", [16, 24])
def test_how_many_rows_of_a_batch_a_hint_says_decides_nothing(rows, explained):
    """Mutant: measured problems of batches of other rows are not tried."""

    def function(x, w):
        return functional.all_reduce(torch.bmm(x, w), "sum", dist.group.WORLD)

    def site(target, rows):
        x = torch.randn(8, rows, 32)
        torch._dynamo.reset()
        torch._dynamo.mark_dynamic(x, 1)
        return explained(function, x, torch.randn(8, 32, 48), target=target).report.sites[0]

    problem = site(FAST_LINK, 16).plan.problem.resolved()
    assert problem.granule == 16
    tuned = TunedPlan(problem, (problem.m - 16, 16), 1e-12)
    target = dataclasses.replace(FAST_LINK, tuned=(tuned,))
    assert site(FAST_LINK, rows).decision == "kept"
    assert site(target, rows).decision == "rewritten"


# --- ranks that compute unlike sizes ---


def chain_of(explained, k, target):
    """The site of a chain of 512x128 that contracts so many, and whether the graph is changed."""
    with torch.no_grad():
        result = explained(in_place, torch.randn(512, k), torch.randn(128, k), target=target)
    (site,) = result.report.sites
    return site, any(before != after for before, after in result.graphs.values())


@pytest.mark.parametrize("k", [1, 300, 2000])
def test_what_a_rank_contracts_does_not_decide(k, explained):
    """Mutant: the rank's own plan does."""
    site, is_changed = chain_of(explained, k, SLOW_LINK)
    pays = k == 300
    wanted = ("chunked", "chunked_overlaps") if pays else ("serial", "other_sizes")
    assert (site.decision, site.plan.schedule, site.code) == ("rewritten", *wanted)
    assert is_changed
    assert pays or "At 512x128x16 it pays" in site.reason


SLOWEST = machine("slowest-link", 2e5)
"""At usual sizes there is too little to compute for it to matter."""


def test_what_pays_at_no_usual_size_is_left_on_all_ranks(explained):
    for k, code in ((8000, "unusual_sizes"), (64, "serial_nothing_to_hide")):
        site, is_changed = chain_of(explained, k, SLOWEST)
        assert (site.decision, site.plan.schedule, site.code) == ("kept", "serial", code)
        assert not is_changed


@pytest.mark.parametrize("rows", [(256, 256), (512,)], ids=["cut", "whole"])
@pytest.mark.parametrize("target", [FAST_LINK, SLOW_LINK], ids=lambda target: target.name)
def test_what_was_measured_of_one_ranks_size_decides_for_all(rows, target, explained):
    """Whatever is predicted. Mutant: of what was measured the rank's own size alone counts."""
    measured, _ = chain_of(explained, 64, target)
    tuned = TunedPlan(measured.plan.problem.resolved(), rows, 1e-3)
    target = dataclasses.replace(target, tuned=(tuned,))
    for k in (64, 300):
        site, is_changed = chain_of(explained, k, target)
        assert is_changed == (site.decision == "rewritten") == (len(rows) > 1)
        if site.code == "unusual_sizes":
            assert (
                "It pays at none of the sizes that were measured around this collective"
                in site.reason
            )
