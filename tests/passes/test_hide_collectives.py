"""Collectives that independent GEMMs hide: which, in what order, and that Inductor keeps it."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code

import overlapc.backend as backend_module
from overlapc.passes import PIPELINE, hide_collectives
from overlapc.passes.hide_collectives import HideCollectives
from tests.passes.emission import SINKING, calls, generated, leave_unbuilt
from tests.targets import FAST_LINK, SLOW_LINK, machine

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("own_caches"),
]


def all_reduce(x):
    return functional.all_reduce(x, "sum", dist.group.WORLD)


def scatter(x):
    return functional.reduce_scatter_tensor(x, "sum", 0, dist.group.WORLD)


def gather(x):
    return functional.all_gather_tensor(x, 0, dist.group.WORLD)


def exchange(x):
    return functional.all_to_all_single(x, None, None, dist.group.WORLD)


def before_it(x, w, y, v):
    b = (y @ v).relu()
    return all_reduce(x.sin()).cos(), b


def after_it(x, w, y, v):
    a = all_reduce(x.sin()).cos()
    return a, (y @ v).relu()


def read(x, w, y, v):
    b = y @ v
    return all_reduce(x.sin()) + 1, b.cumsum(0)


def scattered(x, w, y, v):
    return scatter(x.sin()).cos(), (y @ v).relu()


def gathered(x, w, y, v):
    return gather(x.sin()).cos(), (y @ v).relu()


def exchanged(x, w, y, v):
    return exchange(x.sin()).cos(), (y @ v).relu()


def needed_together(x, w, y, v):
    """Both meet in one GEMM: the wait is put before it, not before the GEMM that is free."""
    return all_reduce(x.sin()).t() @ (y @ v)


def two_gemms_for_one(x, w, y, v):
    return all_reduce(x.repeat(3, 1).sin()).cos(), y @ v, (y + 1) @ v


def two_for_one_gemm(x, w, y, v):
    a, b = all_reduce(x[:256].sin()), all_reduce(x[256:].cos())
    return a.relu(), b.relu(), y @ v


HIDDEN = [
    before_it,
    after_it,
    scattered,
    gathered,
    exchanged,
    needed_together,
    two_gemms_for_one,
    two_for_one_gemm,
]

# --- nothing hides these: the graph stays as it was ---


def needs_the_gemm(x, w, y, v):
    return all_reduce((x @ w).relu().cumsum(0))


def needed_by_the_gemm(x, w, y, v):
    return (all_reduce(x).cumsum(0) * 2).cumsum(1) @ w


def no_gemm(x, w, y, v):
    return all_reduce(x.sin()), y.sin() + 1


def a_tiny_gemm(x, w, y, v):
    return all_reduce(x.sin()), y[:1, :1] @ v[:1, :1]


def of_integers(x, w, y, v):
    return all_reduce(x.sin()), (y * 9).long() @ (v * 9).long()


def only_a_later_collective_feeds_it(x, w, y, v):
    a = all_reduce(x.sin()).cos()
    return a, all_reduce(y.cumsum(0)).cumsum(0) @ v


EXPOSED = [
    needs_the_gemm,
    needed_by_the_gemm,
    no_gemm,
    a_tiny_gemm,
    of_integers,
    only_a_later_collective_feeds_it,
]

ROWS, INNER, COLUMNS = 512, 64, 128


def inputs(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = (ROWS, INNER), (INNER, COLUMNS), (ROWS, INNER), (INNER, COLUMNS)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def code_of(function, values, backend="overlapc", **inductor):
    options = {"target": SLOW_LINK, "inductor": inductor} if backend == "overlapc" else inductor
    compiled = torch.compile(function, backend=backend, options=options)
    with torch.no_grad():
        return calls(generated(compiled, values))


# --- what Inductor does by itself ---


@pytest.mark.parametrize("function", [before_it, after_it, gathered])
@pytest.mark.long
def test_inductor_hides_nothing_by_default(function):
    found = code_of(function, inputs(), "inductor")
    start = min(map(found.index, {"all_reduce", "all_gather"} & {*found}))
    assert found[start + 1] == "wait"


@pytest.mark.parametrize("function", [before_it, after_it, gathered])
def test_inductor_hides_by_itself_where_it_is_told_to(function):
    assert code_of(function, inputs(), "inductor", **SINKING)[1:] == ["mm", "wait"]


@pytest.mark.parametrize("one", hide_collectives.SINKING)
def test_each_pass_of_inductor_that_sinks_waits_does_so(one):
    told = {"reorder_for_compute_comm_overlap": True, **SINKING}
    told["reorder_for_compute_comm_overlap_passes"] = [one]
    moved = code_of(after_it, inputs(), "inductor", **told)
    assert moved == ["all_reduce", "mm", "wait"] or one.startswith("reorder_communication")


# --- what we make of it ---


@pytest.mark.parametrize("function", HIDDEN, ids=lambda function: function.__name__)
def test_the_code_runs_the_gemm_between_start_and_wait(function):
    found = code_of(function, inputs())
    starts = found.count("wait")
    gemms = 2 if function is two_gemms_for_one else 1
    assert not {"wait", "mm"} & {*found[:starts]}
    assert found[starts:][: gemms + 1] == ["mm"] * gemms + ["wait"]


class Linear(torch.autograd.Function):
    """A column-wise linear layer: the gradient of its input is summed over the ranks."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, *gradients):
        (gradient,) = gradients
        x, w = ctx.saved_tensors
        return all_reduce(gradient @ w.t()), x.t() @ gradient


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_backward_runs_the_weight_gradient_while_the_input_gradient_is_sent(
    dynamic, monkeypatch
):
    leave_unbuilt(monkeypatch)
    x, w, _, _ = inputs()
    x, w = x.requires_grad_(), w.requires_grad_()
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, w: Linear.apply(x.sin(), w).tanh(),
        backend="overlapc",
        options={"target": SLOW_LINK},
    )
    _, code = run_and_get_code(lambda: compiled(x, w).sum().backward())
    assert calls(code[-1:]) == ["mm", "all_reduce", "mm", "wait"]


def test_varying_rows(explained):
    values = inputs()
    for value in (values[0], values[2]):
        torch._dynamo.mark_dynamic(value, 0)
    with torch.no_grad():
        assert code_of(after_it, values) == ["all_reduce", "mm", "wait"]
        (site,) = explained(after_it, *values, target=SLOW_LINK).report.sites
    assert (site.code, site.shape[0]) == ("hidden_by_order", "~")


# --- sites ---


@pytest.mark.parametrize("function", [after_it, gathered, two_for_one_gemm, needed_together])
def test_golden(function, explained, golden):
    with torch.no_grad():
        result = explained(function, *inputs(), target=SLOW_LINK)
    golden(result.text())
    assert {(site.decision, site.code) for site in result.report.sites} == {
        ("rewritten", "hidden_by_order")
    }


def test_the_reason_names_the_work_and_both_times(explained):
    with torch.no_grad():
        (site,) = explained(after_it, *inputs(), target=SLOW_LINK).report.sites
    where = r"the GEMM at \(test_hide_collectives\.py:\d+\)"
    assert re.search(where, site.reason)
    # 2 * 512 * 64 * 128 operations at 1 GFLOP/s; 512 * 64 * 4 bytes at 40 MB/s
    assert "8.39 ms of compute beside 3.28 ms of communication" in site.reason
    assert "save 3.28 ms" in site.reason


def test_after_a_fault_nothing_is_moved(explained, monkeypatch):
    """Fails where nobody catches it: the compilation would end."""
    monkeypatch.setattr(hide_collectives, "choose", lambda *_: 1 / 0)
    with torch.no_grad():
        result = explained(after_it, *inputs(), target=SLOW_LINK)
    assert [site.code for site in result.report.sites] != ["hidden_by_order"]
    (before, after) = result.graphs["inference"]
    assert before == after


@pytest.mark.parametrize("function", EXPOSED, ids=lambda function: function.__name__)
def test_not_hidden_and_unchanged(function, explained):
    options = {"target": SLOW_LINK, "disable": ("overlap_chains",)}
    with torch.no_grad():
        result = explained(function, *inputs(), **options)
    assert "hidden_by_order" not in {site.code for site in result.report.sites}
    assert all(before == after for before, after in result.graphs.values())


NO_GAIN = machine("no-gain", 4e7)
object.__setattr__(NO_GAIN, "compute_slowdown", 2.0)
object.__setattr__(NO_GAIN, "link_slowdown", 2.0)


@pytest.mark.parametrize(
    "options",
    [
        {"target": FAST_LINK},
        {"target": NO_GAIN},
        {"target": SLOW_LINK, "overlap": "off"},
        {"target": SLOW_LINK, "overlap": "serial"},
        {"target": SLOW_LINK, "fuel": 0},
        {"target": SLOW_LINK, "disable": ("hide_collectives",)},
        {"target": SLOW_LINK, "disable": ("all",)},
    ],
    ids=str,
)
def test_options_that_hide_nothing(options, explained):
    with torch.no_grad():
        result = explained(after_it, *inputs(), **options)
    assert not {site.code for site in result.report.sites} & {"hidden", "hidden_by_order"}
    assert all(before == after for before, after in result.graphs.values())


def test_what_inductor_hides_is_left_to_it(explained):
    with torch.no_grad():
        result = explained(after_it, *inputs(), target=SLOW_LINK, inductor=SINKING)
    (site,) = result.report.sites
    assert (site.decision, site.code) == ("kept", "hidden")
    assert "3.28 ms" in site.reason
    assert all(before == after for before, after in result.graphs.values())
    assert code_of(after_it, inputs(), **SINKING) == ["all_reduce", "mm", "wait"]


def test_reordering_without_a_pass_that_sinks_waits_is_none(explained):
    with inductor_config.patch(reorder_for_compute_comm_overlap=True):
        assert not hide_collectives.inductor_reorders()
        with inductor_config.patch(reorder_for_compute_comm_overlap_passes=["raise_comms"]):
            assert not hide_collectives.inductor_reorders()


# --- the choice between hiding a collective and cutting its chain ---


def a_chain_and_a_gemm(x, w, y, v):
    return all_reduce(x @ w).relu(), y @ v


def a_chain_and_a_small_gemm(x, w, y, v):
    return all_reduce(x @ w).relu(), y[:64] @ v


def two_chains(x, w, y, v):
    return all_reduce(x @ w).relu(), all_reduce(y @ v).relu()


def codes(explained, function):
    with torch.no_grad():
        return [one.code for one in explained(function, *inputs(), target=SLOW_LINK).report.sites]


@pytest.mark.parametrize("function", [a_chain_and_a_gemm, a_chain_and_a_small_gemm])
def test_a_chain_is_cut_whatever_else_could_hide_it(explained, function):
    assert codes(explained, function) == ["chunked_overlaps"]


def test_a_gemm_whose_own_chain_is_cut_hides_nothing(explained):
    assert codes(explained, two_chains) == ["chunked_overlaps"] * 2


def a_gemm_too_small_to_cut(x, w, y, v):
    """Its eight rows are one unit; it hides what comes before, and so is tied to that."""
    return all_reduce(x.sin()).cos(), all_reduce((y[:, :8].t() @ x).relu())


def a_wait_that_is_sent(x, w, y, v):
    a = all_reduce(x.sin())
    return a.cos(), all_reduce(a), y @ v


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        (
            a_gemm_too_small_to_cut,
            "hides_another",
            r"GEMM at \(test_hide_collectives.py:\d+\) runs",
        ),
        (a_wait_that_is_sent, "no_gemm", "is computed by _c10d_functional.wait_tensor.default"),
    ],
)
def test_what_is_tied_is_called_by_its_own_name(explained, function, code, said):
    """And not by the op that Inductor ties it with. Mutants: that one is named; a GEMM that hides
    another collective is no GEMM."""
    with torch.no_grad():
        sites = explained(function, *inputs(), target=SLOW_LINK).report.sites
    reasons = {site.code: site.reason for site in sites}
    assert reasons.keys() == {"hidden_by_order", code}
    assert re.search(said, reasons[code])
    assert "control_deps" not in "".join(reasons.values())


# --- ranks whose sizes are unlike decide alike ---


def test_without_the_cut_it_is_hidden(explained):
    options = {"target": SLOW_LINK, "disable": ("overlap_chains",)}
    with torch.no_grad():
        result = explained(a_chain_and_a_small_gemm, *inputs(), **options)
    assert [site.code for site in result.report.sites] == ["hidden_by_order"]


# --- what a GEMM can hide ---


# --- values ---


# --- mutants ---


def test_without_the_pass_the_wait_comes_first(monkeypatch):
    others = tuple(one for one in PIPELINE if not isinstance(one, HideCollectives))
    monkeypatch.setattr(backend_module, "PIPELINE", others)
    assert code_of(after_it, inputs()) == ["all_reduce", "wait", "mm"]


@pytest.mark.skipif(torch.__version__ >= "2.14", reason="there the order of the graph was enough")
def test_without_control_dependencies_the_order_of_the_graph_is_not_enough(monkeypatch):
    monkeypatch.setattr(hide_collectives, "preserve_node_ordering", lambda graph, after: None)
    wrong = [["all_reduce", "wait", "mm"], ["mm", "all_reduce", "wait"]]
    assert any(code_of(function, inputs()) in wrong for function in (before_it, after_it, read))
