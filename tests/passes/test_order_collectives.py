"""Our ops keep their place among other collectives in the code that Inductor writes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import overlapc.backend as backend_module
from overlapc.graphs.collectives import collective_starts
from overlapc.graphs.edges import is_ancestor
from overlapc.passes import PIPELINE
from overlapc.runtime.spec import COLLECTIVE_OF
from tests.passes.emission import SINKING, calls, generated, kinds_of_ours
from tests.targets import SLOW_LINK


def all_reduce(x):
    return functional.all_reduce(x, "sum", dist.group.WORLD)


def ours_first(x, w, big, v):
    z = all_reduce(x @ w)
    y = all_reduce(v + 1)
    return y.sum(), z


def ours_between(x, w, big, v):
    y = all_reduce((big * 2 + 1).relu())
    z = all_reduce(x @ w)
    u = all_reduce(v + 1)
    return (y * 3).sum() + u.sum(), z.relu()


def two_of_ours(x, w, big, v):
    second = all_reduce((x + 1) @ w)
    first = all_reduce(x @ w)
    return first.relu().sum() + big.sum(), second


NAMED = {"ours": "ours", "all_reduce": "plain"}

# What the generated code sends, by name: "plain" is c10d's own all-reduce.
CASES = {
    "ours_first": (ours_first, ["ours", "plain"]),
    "ours_between": (ours_between, ["plain", "ours", "plain"]),
    "two_of_ours": (two_of_ours, ["ours", "ours"]),
}


def emitted(function, rows):
    """The collectives of the generated code, in order."""
    compiled = torch.compile(function, backend="overlapc", options={"target": SLOW_LINK})
    shapes = (512, 64), (64, 128), (rows, 1024), (rows, 8)
    with torch.no_grad():
        code = generated(compiled, [torch.randn(shape) for shape in shapes])
    return [NAMED[call] for call in calls(code) if call in NAMED]


@pytest.fixture(autouse=True)
def own_caches(fake_group, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [64, 4096])
def test_the_code_sends_in_the_order_of_the_program(name, rows):
    function, wanted = CASES[name]
    assert emitted(function, rows) == wanted


def test_without_the_pass_the_order_is_lost(monkeypatch):
    """The mutant that shows that the test above can fail."""
    monkeypatch.setattr(backend_module, "PIPELINE", PIPELINE[:-1])
    orders = {name: emitted(function, 4096) for name, (function, _) in CASES.items()}
    assert any(orders[name] != wanted for name, (_, wanted) in CASES.items())


def gather(x):
    return functional.all_gather_tensor(x, 0, dist.group.WORLD)


def scatter(x):
    return functional.reduce_scatter_tensor(x, "sum", 0, dist.group.WORLD)


def exchange(x):
    return functional.all_to_all_single(x, None, None, dist.group.WORLD)


def scattered_first(x, w, big, v):
    z = scatter(x @ w)
    y = gather(v.sin())
    return y.sum(), z


def gathered_between(x, w, big, v):
    y = scatter((big * 2 + 1).relu())
    z = gather(x) @ w
    u = all_reduce(v + 1)
    return (y * 3).sum() + u.sum(), z.relu()


def exchanged_between(x, w, big, v):
    y = gather((big * 2 + 1).relu())
    z = exchange(x @ w)
    u = exchange(v.sin())
    return (y * 3).sum() + u.sum(), z.relu()


def all_of_ours(x, w, big, v):
    third = gather(x + 1) @ w
    second = scatter((x + 2) @ w)
    first = all_reduce(x @ w)
    return first.relu().sum() + big.sum(), second, third


def plain_ones(x, w, big, v):
    y = gather((big * 2 + 1).relu())
    z = scatter(x.sin())
    u = exchange(v + 1)
    return (y * 3).sum() + u.sum(), z.relu()


def hidden_among_ours(x, w, big, v):
    """What the gradient of its GEMM's weight hides is started where the program starts it."""
    y = gather(v[:64].sin())
    z = all_reduce(x @ w)
    free = x.t() @ big[:512, :128]
    u = scatter(v + 1)
    return y.sum() + u.sum(), z.relu(), free


MIXED = {
    "scattered_first": (scattered_first, ["ours", "all_gather"]),
    "gathered_between": (gathered_between, ["reduce_scatter", "ours", "all_reduce"]),
    "exchanged_between": (exchanged_between, ["all_gather", "ours", "all_to_all"]),
    "all_of_ours": (all_of_ours, ["ours"] * 3),
    "plain_ones": (plain_ones, ["all_gather", "reduce_scatter", "all_to_all"]),
    "hidden_among_ours": (hidden_among_ours, ["all_gather", "all_reduce", "reduce_scatter"]),
}
REORDERING = "reorder_for_compute_comm_overlap"
CONFIGURED = {
    "default": {},
    **{
        one: {REORDERING: True, f"{REORDERING}_passes": [one]}
        for one in ("reorder_compute_for_overlap", "sink_waits_iterative", "raise_comms")
    },
    "reordering": SINKING,
}
KINDS = ["all_gather_gemm", "gemm_reduce_scatter", "gemm_all_reduce"]
"""Of ``all_of_ours``."""


def written(function, rows, config):
    options = {"target": SLOW_LINK, "inductor": CONFIGURED[config]}
    compiled = torch.compile(function, backend="overlapc", options=options)
    shapes = (512, 64), (64, 128), (rows, 1024), (rows, 8)
    with torch.no_grad():
        code = generated(compiled, [torch.randn(shape) for shape in shapes])
    return [call for call in calls(code) if call not in ("mm", "wait")], code


def is_in_order(function, wanted, found, code, config):
    """Whether our ops and the plain collectives come as the program has them."""
    if "ours" not in found:  # Inductor moves the ones it knows, the same way on every rank
        return "ours" not in wanted or config == "reordering"
    kinds = kinds_of_ours("\n".join(code))
    return found == wanted and (function is not all_of_ours or kinds == KINDS)


ROWS = (512, 4096)
OFTEN = {
    (name, config, ROWS[(i + j // 2) % 2])
    for i, name in enumerate(MIXED)
    for j, config in enumerate(CONFIGURED)
    if config == "default" or i % 3 == j % 3
}
"""Every time: by default each function, by the others two each, and all with both numbers of rows
among these."""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "config", "rows"),
    [
        pytest.param(*case, marks=[] if case in OFTEN else [pytest.mark.long])
        for case in product(MIXED, CONFIGURED, ROWS)
    ],
)
def test_every_collective_keeps_its_place(name, config, rows):
    function, wanted = MIXED[name]
    found, code = written(function, rows, config)
    assert is_in_order(function, wanted, found, code, config)
    if (config, rows) == ("default", 512):
        assert found == wanted


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("without", "config"), [("order_collectives", "default"), ("leave_unordered", "reordering")]
)
def test_without_the_pass_some_collective_loses_its_place(without, config, monkeypatch):
    """The mutants of the test above."""
    others = tuple(one for one in PIPELINE if one.name != without)
    assert len(others) < len(PIPELINE)
    monkeypatch.setattr(backend_module, "PIPELINE", others)
    cases = [(*one, rows) for one in MIXED.values() for rows in ROWS]
    assert not all(
        is_in_order(function, wanted, *written(function, rows, config), config)
        for function, wanted, rows in cases
    )


def test_where_inductor_would_move_our_ops_collectives_stay(explained):
    values = [torch.randn(shape) for shape in ((512, 64), (64, 128), (512, 1024), (512, 8))]
    options = {"target": SLOW_LINK, "inductor": SINKING}
    with torch.no_grad():
        several = explained(ours_between, *values, **options)
        one = explained(lambda x, w: all_reduce(x @ w), *values[:2], **options)
    assert {(s.decision, s.code) for s in several.report.sites} == {
        ("refused", "reordered_by_inductor")
    }
    assert len(several.report.sites) == 3
    assert several.graphs["inference"][0] == several.graphs["inference"][1]
    assert [site.decision for site in one.report.sites] == ["rewritten"]


def test_ancestors_are_found_through_edges_only():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(torch.relu, (x,))
    middle = graph.call_function(torch.neg, (first,))
    apart = graph.call_function(torch.abs, (x,))
    last = graph.call_function(torch.add, (middle, 1))
    graph.output((last, apart))
    assert is_ancestor(first, last)
    assert not is_ancestor(first, apart)
    assert not is_ancestor(apart, last)


def test_which_of_our_ops_communicate():
    """Mutant: all do but for some that are named, of which one is forgotten."""
    graph = torch.fx.Graph()
    named = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("overlapc:")]
    for name in named:
        graph.call_function(getattr(torch.ops.overlapc, name.removeprefix("overlapc::")).default)
    found = {str(node.target).split(".")[1] for node in collective_starts(graph)}
    assert found == {*COLLECTIVE_OF, "verify_sizes"}
    assert {f"overlapc::{name}" for name in found} < set(named)


def test_an_unread_result_is_sent_all_the_same(fake_group):
    def unread(x, w, big, v):
        y = x @ w
        dist.all_reduce(y)
        return x.sum()

    assert emitted(unread, 64) == ["ours"]
