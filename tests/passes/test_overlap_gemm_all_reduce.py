"""Which spellings of GEMM -> all-reduce are found, and which are refused and left as they were."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from overlapc.errors import OptionError
from tests.targets import FAST_LINK, SLOW_LINK

ROWS, INNER, COLUMNS = 512, 64, 128


def x2(**kwargs):
    return torch.randn(ROWS, INNER, **kwargs)


def x3(**kwargs):
    return torch.randn(4, ROWS // 4, INNER, **kwargs)


def weight(**kwargs):
    return torch.randn(COLUMNS, INNER, **kwargs)


def all_reduce(y, op="sum"):
    return functional.all_reduce(y, op, dist.group.WORLD)


def in_place(x, w):
    y = F.linear(x, w)
    dist.all_reduce(y)
    return y.relu()


def functional_mm(x, w):
    return all_reduce(x @ w.t()) + 1


def with_bias(x, w, b):
    return all_reduce(F.linear(x, w, b)).tanh()


def views_between(x, w):
    y = (x @ w.t()).view(4, -1, 2, w.shape[0] // 2).unsqueeze(0)
    return all_reduce(y).squeeze(0).flatten(2)


def two_chains(x, w):
    y = all_reduce(x @ w.t()).relu()
    return all_reduce(y @ w)


SPELLINGS = {
    "in_place_2d": (in_place, lambda: (x2(), weight())),
    "in_place_3d": (in_place, lambda: (x3(), weight())),
    "functional_2d": (functional_mm, lambda: (x2(), weight())),
    "functional_3d": (functional_mm, lambda: (x3(), weight())),
    "bias": (with_bias, lambda: (x3(), weight(), torch.randn(COLUMNS))),
    "views_between": (views_between, lambda: (x2(), weight())),
    "two_chains": (two_chains, lambda: (x2(), weight())),
    "float64": (functional_mm, lambda: (x2(dtype=torch.float64), weight(dtype=torch.float64))),
    "bfloat16": (functional_mm, lambda: (x2(dtype=torch.bfloat16), weight(dtype=torch.bfloat16))),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_rewritten_in_inference(name, explained, golden):
    function, inputs = SPELLINGS[name]
    with torch.no_grad():
        result = explained(function, *inputs(), target=SLOW_LINK)
    assert {site.decision for site in result.report.sites} == {"rewritten"}
    golden(result.text())


@pytest.mark.parametrize("name", ["in_place_3d", "bias"])
def test_rewritten_in_training(name, explained, golden):
    function, inputs = SPELLINGS[name]
    leaves = [value.requires_grad_() for value in inputs()]
    result = explained(function, *leaves, target=SLOW_LINK)
    golden(result.text())
    assert [s.decision for s in result.report.sites if s.graph == "forward"] == ["rewritten"]


def test_symbolic_rows(explained, golden):
    x, w = x3(), weight()
    torch._dynamo.mark_dynamic(x, 1)
    with torch.no_grad():
        result = explained(in_place, x, w, target=SLOW_LINK)
    golden(result.text())
    (site,) = result.report.sites
    assert site.decision == "rewritten"
    assert site.shape.startswith(f"~{ROWS}x")


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
    result = explained(model, x3(requires_grad=True), target=SLOW_LINK)
    golden(result.text())
    found = [(site.graph, site.decision, site.where.split()[0]) for site in result.report.sites]
    assert found == [("forward", "rewritten", "down"), ("backward", "rewritten", "up")]


def test_activation_checkpointing_hides_no_site(explained):
    from torch.utils.checkpoint import checkpoint

    def checkpointed(x, w):
        return checkpoint(functional_mm, x, w, use_reentrant=False)

    result = explained(checkpointed, x2(requires_grad=True), weight(), target=SLOW_LINK)
    assert "rewritten" in {site.decision for site in result.report.sites}


# --- refusals: as many as rewrites, and the graph stays as it was ---


def other_user(x, w):
    y = x @ w.t()
    return all_reduce(y), y.sum()


def user_of_a_view(x, w):
    y = x @ w.t()
    return all_reduce(y.view(-1)), y.view(-1, 2).sum()


def no_gemm(x, w):
    return all_reduce((x @ w.t()).relu())


def of_an_input(x, w):
    return all_reduce(x) @ w.t()


def maximum(x, w):
    return all_reduce(x @ w.t(), "max")


def product(x, w):
    return all_reduce(x @ w.t(), "product")


def transposed(x, w):
    return all_reduce((x @ w.t()).t().contiguous())


def scaled_addmm(x, w):
    return all_reduce(torch.addmm(w[:, 0], x, w.t(), beta=0.5, alpha=2.0))


def integer(x, w):
    return all_reduce(x.to(torch.int64) @ w.t().to(torch.int64))


def cast_between(x, w):
    return all_reduce((x @ w.t()).double())


REFUSALS = {
    "other_user": (other_user, "other_users"),
    "user_of_a_view": (user_of_a_view, "other_users"),
    "no_gemm": (no_gemm, "no_gemm"),
    "of_an_input": (of_an_input, "no_gemm"),
    "maximum": (maximum, "reduction"),
    "product": (product, "reduction"),
    "transposed": (transposed, "no_gemm"),
    "scaled_addmm": (scaled_addmm, "scaled_addmm"),
    "integer": (integer, "no_plan"),
    "cast_between": (cast_between, "no_gemm"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_and_unchanged(name, explained, golden):
    function, code = REFUSALS[name]
    with torch.no_grad():
        result = explained(function, x2(), weight(), target=SLOW_LINK)
    assert [(site.decision, site.code) for site in result.report.sites] == [("refused", code)]
    golden(result.text())
    assert all(before == after for before, after in result.graphs.values())


def test_not_waited_once(fake_group):
    """A collective that two waits read cannot be moved; only a graph by hand has one."""
    from overlapc.chain import Refusal
    from overlapc.passes.overlap_gemm_all_reduce import match

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    functions = torch.ops._c10d_functional
    start = graph.call_function(functions.all_reduce.default, (x, "sum", "0"))
    waits = [graph.call_function(functions.wait_tensor.default, (start,)) for _ in range(2)]
    graph.output(tuple(waits))
    refusal = match(start)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "not_waited_once"


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({"target": FAST_LINK}, "kept"),
        ({"target": SLOW_LINK, "overlap": "off"}, "refused"),
        ({"target": SLOW_LINK, "fuel": 0}, "kept"),
        ({"target": SLOW_LINK, "disable": ("overlap_gemm_all_reduce",)}, "refused"),
        ({"target": SLOW_LINK, "disable": ("all",)}, "refused"),
    ],
)
def test_options_that_leave_the_graph_unchanged(options, decision, explained):
    with torch.no_grad():
        result = explained(in_place, x2(), weight(), **options)
    assert all(before == after for before, after in result.graphs.values())
    assert [site.decision for site in result.report.sites] == [decision]


def test_a_pass_that_does_not_exist_cannot_be_disabled(explained):
    with pytest.raises(OptionError, match="overlap_gemm_all_reduce"):
        explained(in_place, x2(), weight(), disable=("overlap_gemm_allreduce",))


def test_other_collectives_are_refused_sites(explained):
    def scattered(x, w):
        return functional.reduce_scatter_tensor(x @ w.t(), "sum", 0, dist.group.WORLD)

    with torch.no_grad():
        result = explained(scattered, x2(), weight(), target=SLOW_LINK)
    (site,) = result.report.sites
    assert (site.kind, site.decision, site.code) == ("gemm_reduce_scatter", "refused", "collective")
    assert all(before == after for before, after in result.graphs.values())


def test_forced_schedule_is_obeyed_where_it_does_not_pay(explained):
    with torch.no_grad():
        result = explained(in_place, x2(), weight(), target=FAST_LINK, overlap="chunked")
    (site,) = result.report.sites
    assert (site.decision, site.plan.schedule) == ("rewritten", "chunked")


def test_group_of_one_rank_is_kept(explained):
    alone = dist.new_group([0])

    def one_rank(x, w):
        return functional.all_reduce(x @ w.t(), "sum", alone)

    with torch.no_grad():
        result = explained(one_rank, x2(), weight(), target=SLOW_LINK)
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


def test_a_signaled_site_dumps_the_module_that_checks_itself(explained, tmp_path, monkeypatch):
    """Planned for a GPU that is not here; the module runs in Triton's interpreter."""
    import subprocess
    import sys

    x, w = torch.randn(2048, 512, dtype=torch.float16), torch.randn(1024, 512, dtype=torch.float16)
    with torch.no_grad():
        result = explained(functional_mm, x, w, target="h100-nvlink", overlap="signaled")
    (site,) = result.report.sites
    assert (site.decision, site.plan.schedule) == ("rewritten", "signaled")
    (module,) = tmp_path.glob("dump/*/site_00.py")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = subprocess.run(
        [sys.executable, str(module)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
