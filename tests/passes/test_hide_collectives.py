"""Collectives that independent GEMMs hide: which, in what order, and that Inductor keeps it."""

from __future__ import annotations

import copy
import re
from itertools import chain

import networkx as nx
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code

import overlapc.backend as backend_module
from overlapc.graphs import exposure
from overlapc.graphs.chains.gemms import form_of
from overlapc.graphs.collectives import Collective, collective_starts, read_collective
from overlapc.graphs.exposure import Dependencies, hiding
from overlapc.options import Options
from overlapc.passes import PIPELINE, chain_decisions, hide_collectives
from overlapc.passes.base import Compilation
from overlapc.passes.hide_collectives import HideCollectives
from overlapc.planning.search import plan
from tests.passes import lockstep
from tests.passes.emission import SINKING, calls, generated, leave_unbuilt
from tests.targets import FAST_LINK, SLOW_LINK, machine

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


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


@pytest.fixture(autouse=True)
def own_caches(fake_group, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


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


# --- ranks whose sizes are unlike decide alike ---


def gradients(x, w, g):
    """Of the rows and of the weight of a layer whose columns ranks share."""
    return all_reduce(g @ w.t()).relu(), x.t() @ g


def gradients_turned(x, w, g):
    return g.t() @ x, all_reduce(g @ w.t()).relu()


def both_are_sent(x, w, g):
    return all_reduce(g @ w.t()).relu(), all_reduce(x.t() @ g).relu()


def of_other_columns(x, w, g):
    return all_reduce(g @ w.t()).relu(), x[:, :32].t() @ g


def of_other_rows(x, w, g):
    return all_reduce(g @ w.t()).relu(), x.t() @ g.sin()


def another_layer(x, w, g):
    """Which gives as many numbers as the weight has where a rank's share is as many as rows."""
    return all_reduce(g @ w.t()).relu(), g @ w.t().sin()


def dealt(x, w, g):
    rows = [len(g) // 4, len(g) - len(g) // 4]
    sent = functional.all_to_all_single(g @ w.t(), rows, rows, dist.group.WORLD)
    return sent.relu(), x.t() @ g


def gathered_before(x, w, g):
    return gather(x) @ w, g.t() @ x


CHOICES = {
    gradients: ["hidden_by_order"],
    gradients_turned: ["hidden_by_order"],
    dealt: ["hidden_by_order"],
    # Not as much work as the chain's own, or that of another chain.
    both_are_sent: [True, True],
    of_other_columns: [True],
    of_other_rows: [True],
    another_layer: [True],
    gathered_before: [True],
}
"""Codes of sites; True where a chain is cut."""

SHARES = (600, ROWS, 64, 8, 3)
"""Columns that ranks may have of one layer."""


def of_ranks(explained, function, rows=ROWS, dynamic=False, shares=SHARES):
    """What ranks choose that share the columns of one layer in unlike parts."""
    found = []
    for mine in shares:
        x, w, g = torch.randn(rows, COLUMNS), torch.randn(COLUMNS, mine), torch.randn(rows, mine)
        if dynamic:
            torch._dynamo.mark_dynamic(w, 1)
            torch._dynamo.mark_dynamic(g, 1)
        torch._dynamo.reset()
        with torch.no_grad():
            sites = explained(function, x, w, g, target=MIDDLE).report.sites
        found.append(
            [one.code if "hidden" in one.code else one.decision == "rewritten" for one in sites]
        )
    return found


MIDDLE = machine("middle-link", 4e8)


@pytest.mark.parametrize("function", CHOICES, ids=lambda function: function.__name__)
def test_unlike_shards_decide_alike(explained, function):
    assert of_ranks(explained, function) == [CHOICES[function]] * len(SHARES)


@pytest.mark.parametrize("function", [gradients, gradients_turned, dealt])
def test_a_rank_of_one_column_decides_as_the_others(explained, function):
    """To turn it moves nothing. Mutant: then it counts as not turned."""
    assert of_ranks(explained, function, shares=(1,)) == [CHOICES[function]]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_rank_that_deals_out_nothing_decides_as_the_others(explained, rows):
    """What it sends takes no time. Mutant: such a collective is not hidden."""
    assert of_ranks(explained, dealt, rows) == [CHOICES[dealt]] * len(SHARES)


@pytest.mark.parametrize("function", [gradients, of_other_rows])
def test_shards_that_vary_on_one_rank_decide_as_the_others(explained, function):
    assert of_ranks(explained, function, dynamic=True) == [CHOICES[function]] * len(SHARES)


def test_a_rank_that_goes_by_its_own_plan_is_caught(explained, monkeypatch):
    monkeypatch.setattr(
        chain_decisions,
        "_that_pays",
        lambda chain, problem, target, measured: next(
            (p for p in [plan(problem, target)] if p.schedule != "serial"), None
        ),
    )
    assert len(set(map(tuple, of_ranks(explained, of_other_rows)))) > 1


def test_a_rank_that_hides_by_its_own_seconds_is_caught(explained, monkeypatch):
    def by_seconds(self, collective, target, size, gemms, reserved):
        hiding = self.hiding(collective, target, size, reserved)
        return hiding if hiding and hiding.pays(0.2) else None

    monkeypatch.setattr(Dependencies, "by_gradients", by_seconds)
    assert len(set(map(tuple, of_ranks(explained, of_other_rows)))) > 1


def test_without_the_cut_it_is_hidden(explained):
    options = {"target": SLOW_LINK, "disable": ("overlap_chains",)}
    with torch.no_grad():
        result = explained(a_chain_and_a_small_gemm, *inputs(), **options)
    assert [site.code for site in result.report.sites] == ["hidden_by_order"]


# --- what a GEMM can hide ---


def traced(function):
    module = lockstep.traced(function, *inputs())
    found = [read_collective(start) for start in collective_starts(module.graph)]
    return module, [one for one in found if isinstance(one, Collective)]


def test_a_gemm_hides_no_more_than_its_time():
    module, (first, second) = traced(two_for_one_gemm)
    dependencies = Dependencies(module.graph)
    slow = machine("slower", 8e6)  # 64 KiB take 8.192 ms, the GEMM 8.389 ms
    one = dependencies.hiding(first, slow, 2)
    assert one is not None
    assert one.saved_seconds == pytest.approx(8.192e-3)
    dependencies.take(first, one)
    rest = dependencies.hiding(second, slow, 2)
    assert rest is not None
    assert rest.compute_seconds == pytest.approx(8.389e-3 - 8.192e-3, rel=1e-2)
    assert rest.saved_seconds == pytest.approx(rest.compute_seconds)
    assert hiding(module.graph, second, slow, 2) == hiding(module.graph, first, slow, 2)


def test_a_slowdown_on_both_sides_is_paid():
    module, (one,) = traced(after_it)
    contended = machine("contended", 4e7)
    object.__setattr__(contended, "compute_slowdown", 1.25)
    free, paid = (hiding(module.graph, one, target, 2) for target in (SLOW_LINK, contended))
    assert free is not None
    assert paid is not None
    assert paid.saved_seconds == pytest.approx(free.saved_seconds - 0.25 / 1.25 * 3.2768e-3)


def test_far_work_is_not_brought_near(monkeypatch):
    module, (one,) = traced(after_it)
    assert hiding(module.graph, one, SLOW_LINK, 2) is not None
    monkeypatch.setattr(exposure, "WINDOW", 1)
    assert hiding(module.graph, one, SLOW_LINK, 2) is None


def test_the_order_of_collectives_is_kept():
    """The GEMM feeds the first collective, so it may not run after the second has started."""

    def first_needs_it(x, w, y, v):
        a = all_reduce((y @ v).cumsum(0))
        return a, all_reduce(x.sin())

    module, (_, second) = traced(first_needs_it)
    assert hiding(module.graph, second, SLOW_LINK, 2) is None


# --- values ---


def hidden(module, **options):
    after = copy.deepcopy(module)
    compilation = Compilation(
        Options(**options), "inference", lambda device, group: SLOW_LINK, "graph"
    )
    HideCollectives().apply(after.graph, compilation)
    after.graph.lint()
    return after, compilation


def is_right(before, after):
    feeds = [inputs(seed) for seed in range(2)]
    wanted, found = lockstep.run(before, feeds), lockstep.run(after, feeds)
    pairs = zip(chain.from_iterable(wanted), chain.from_iterable(found), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("function", HIDDEN, ids=lambda function: function.__name__)
def test_the_values_stay(function):
    module = lockstep.traced(function, *inputs())
    after, compilation = hidden(module)
    assert len(compilation.sites) == len(compilation.taken) == len(collective_starts(module.graph))
    assert is_right(module, after)


# --- mutants ---


def test_without_the_pass_the_wait_comes_first(monkeypatch):
    others = tuple(one for one in PIPELINE if not isinstance(one, HideCollectives))
    monkeypatch.setattr(backend_module, "PIPELINE", others)
    assert code_of(after_it, inputs()) == ["all_reduce", "wait", "mm"]


def test_without_control_dependencies_the_order_of_the_graph_is_not_enough(monkeypatch):
    monkeypatch.setattr(hide_collectives, "preserve_node_ordering", lambda graph, after: None)
    wrong = [["all_reduce", "wait", "mm"], ["mm", "all_reduce", "wait"]]
    assert any(code_of(function, inputs()) in wrong for function in (before_it, after_it, read))


@pytest.mark.parametrize("function", [needs_the_gemm, needed_by_the_gemm])
def test_forgetting_a_dependency_is_caught(function, monkeypatch):
    def all_gemms(self, collective):
        return [node for node in self.places if form_of(node) is not None]

    monkeypatch.setattr(Dependencies, "independent", all_gemms)
    monkeypatch.setattr(hide_collectives, "cut_of", lambda start, compilation: ())
    with pytest.raises(nx.NetworkXUnfeasible):
        hidden(lockstep.traced(function, *inputs()))


def test_forgetting_what_is_used_up_is_caught(monkeypatch):
    module, (first, second) = traced(two_for_one_gemm)
    dependencies = Dependencies(module.graph)
    one = dependencies.hiding(first, SLOW_LINK, 2)
    assert one is not None
    dependencies.take(first, one)
    dependencies.used.clear()
    again = dependencies.hiding(second, SLOW_LINK, 2)
    assert again is not None
    assert again.compute_seconds == one.compute_seconds
