"""Our ops keep their place among other collectives in the code that Inductor writes."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._inductor.utils import run_and_get_code

import overlapc.backend as backend_module
from overlapc.graph import is_ancestor
from overlapc.passes import PIPELINE
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


# What the generated code sends, by name: "plain" is c10d's own all-reduce.
CASES = {
    "ours_first": (ours_first, ["ours", "plain"]),
    "ours_between": (ours_between, ["plain", "ours", "plain"]),
    "two_of_ours": (two_of_ours, ["ours", "ours"]),
}


def emitted(function, rows):
    """The collectives of the generated code, in order; comments are not code."""
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="overlapc", options={"target": SLOW_LINK})
    inputs = (
        torch.randn(512, 64),
        torch.randn(64, 128),
        torch.randn(rows, 1024),
        torch.randn(rows, 8),
    )
    with torch.no_grad():
        _, code = run_and_get_code(compiled, *inputs)
    lines = [line for line in "\n".join(code).splitlines() if not line.lstrip().startswith("#")]
    calls = re.findall(
        r"(overlapc\.gemm_all_reduce|_c10d_functional\.all_reduce_?)\.default\(", "\n".join(lines)
    )
    return ["ours" if "overlapc" in call else "plain" for call in calls]


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


def test_an_unread_result_is_sent_all_the_same(fake_group):
    def unread(x, w, big, v):
        y = x @ w
        dist.all_reduce(y)
        return x.sum()

    assert emitted(unread, 64) == ["ours"]
