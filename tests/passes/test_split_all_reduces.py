"""All-reduces between two GEMMs: which are split, what of them is overlapped, and the values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from overlapc.graphs.chains.halves import split
from overlapc.passes import PIPELINE, split_all_reduces
from overlapc.passes.base import Fuel
from overlapc.passes.overlap_chains import OverlapChains
from overlapc.passes.split_all_reduces import SplitAllReduces
from tests.passes.catalogue import (
    BATCH,
    COLUMNS,
    INNER,
    ROWS,
    all_reduce,
    reduce_scatter,
    weight,
    x2,
    x3,
)
from tests.passes.test_catalogue import said
from tests.passes.test_catalogue_values import rewritten, run, worst
from tests.targets import FAST_LINK, SLOWER_LINK

RS, AG, AR = "gemm_reduce_scatter", "all_gather_gemm", "gemm_all_reduce"


def square():
    return torch.randn(COLUMNS, COLUMNS)


def residual():
    return torch.randn(BATCH, ROWS, COLUMNS)


def llama(x, w, r, g, q, k, v):
    """From one row-parallel layer to the next column-parallel ones; the residual goes on."""
    h = all_reduce(F.linear(x, w)) + r
    n = F.rms_norm(h, (COLUMNS,), g)
    return h, F.linear(n, q), F.linear(n, k), F.linear(n, v)


def gpt(x, w, b, r, up):
    """The same with biases and a layer norm, on rows that are one dimension."""
    h = all_reduce(F.linear(x, w)) + b + r
    return h, F.gelu(F.linear(F.layer_norm(h, (COLUMNS,)), up))


def plain(x, w, v):
    return F.linear(all_reduce(F.linear(x, w)), v)


def average(x, w, v):
    return F.linear(all_reduce(F.linear(x, w), "avg").relu(), v)


SPLIT = {
    "llama": (
        llama,
        lambda: (x3(), weight(), residual(), torch.randn(COLUMNS), square(), square(), square()),
    ),
    "gpt": (
        gpt,
        lambda: (
            x2(),
            weight(),
            torch.randn(COLUMNS),
            torch.randn(BATCH * ROWS, COLUMNS),
            square(),
        ),
    ),
    "plain": (plain, lambda: (x3(), weight(), square())),
    "average": (average, lambda: (x2(), weight(), square())),
}


def nothing_after(x, w, v):
    return all_reduce(F.linear(x, w)).relu()


def fed_on(x, w, v):
    """The second GEMM is the second collective's."""
    return all_reduce(F.linear(all_reduce(F.linear(x, w)), v))


def fed_to_a_scatter(x, w, v):
    """The same, by a layout that does not keep rows apart."""
    return reduce_scatter(F.linear(all_reduce(F.linear(x, w)), v), 1)


def norm_of_rows(x, w, v):
    y = all_reduce(F.linear(x, w))
    return F.linear(y - y.mean(0), v)


def contracted(x, w, v):
    y = all_reduce(F.linear(x, w))
    return y.t() @ y


WHOLE = {
    "nothing_after": (nothing_after, lambda: (x3(), weight(), square())),
    "fed_on": (fed_on, lambda: (x2(), weight(), square())),
    "fed_to_a_scatter": (fed_to_a_scatter, lambda: (x3(), weight(), square())),
    "norm_of_rows": (norm_of_rows, lambda: (x2(), weight(), square())),
    "contracted": (contracted, lambda: (x2(), weight(), square())),
    "uneven_rows": (plain, lambda: (torch.randn(511, INNER), weight(), square())),
}


def explain(explained, case, target=SLOWER_LINK, *, dynamic=None, **options):
    function, inputs = case
    torch.manual_seed(0)
    values = inputs()
    if dynamic is not None:
        torch._dynamo.mark_dynamic(values[0], dynamic)
    with torch.no_grad():
        return explained(function, *values, target=target, **options)


@pytest.mark.parametrize("name", SPLIT)
def test_is_split(name, explained, golden):
    result = explain(explained, SPLIT[name])
    sites = result.report.sites
    assert said(sites) == (RS, AG)
    assert all("half of an all-reduce" in site.reason for site in sites)
    golden(result.text())


@pytest.mark.parametrize("name", WHOLE)
def test_stays_whole(name, explained):
    result = explain(explained, WHOLE[name], disable=("overlap_chains", "hide_collectives"))
    for before, after in result.graphs.values():
        assert before == after


def test_varying_rows_stay_whole(explained):
    assert said(explain(explained, SPLIT["plain"], dynamic=1).report.sites) == (AR,)


def test_a_fault_leaves_the_graph_as_it_was(explained, monkeypatch):
    monkeypatch.setattr(split_all_reduces, "read_consumer", lambda *_: 1 / 0)
    result = explain(explained, SPLIT["llama"], disable=("overlap_chains", "hide_collectives"))
    for before, after in result.graphs.values():
        assert before == after


def test_what_does_not_pay_is_unchanged_and_says_so(explained):
    result = explain(explained, SPLIT["llama"], FAST_LINK)
    assert [site.decision for site in result.report.sites] == ["kept"]
    reason = result.report.sites[0].reason
    assert re.search("In halves, .*, and the margin is [58]%.", reason)
    for before, after in result.graphs.values():
        assert before == after


@pytest.mark.parametrize("options", [{"disable": ("split_all_reduces",)}, {"overlap": "chunked"}])
def test_options_leave_it_whole(options, explained):
    assert said(explain(explained, SPLIT["llama"], **options).report.sites) == (AR,)


def test_halves_share_the_fuel(explained, monkeypatch):
    monkeypatch.setattr(Fuel, "spent", 0)
    sites = explain(explained, SPLIT["llama"], fuel=0).report.sites
    assert [site.kind for site in sites] == [AR]


@dataclass(frozen=True)
class Averaged(SplitAllReduces):
    """A mutant: what is scattered is divided by the number of ranks."""

    def apply(self, graph, compilation):
        wrong = lambda whole, ranks: split(replace(whole, reduce="avg"), ranks)  # noqa: E731
        right, split_all_reduces.split = split_all_reduces.split, wrong
        try:
            super().apply(graph, compilation)
        finally:
            split_all_reduces.split = right


def compare(rank, names, passes=None):
    """Each case's worst error and the kinds of its sites; the residual differs by rank."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return {name: compared(rank, name, passes) for name in names}
    finally:
        torch.use_deterministic_algorithms(False)


def compared(rank, name, passes):
    function, inputs = SPLIT[name]
    torch._dynamo.reset()
    torch.manual_seed(rank)
    values, sites = inputs(), []
    plain = torch.compile(function, backend="aot_eager")
    ours = rewritten(function, passes or PIPELINE, sites, SLOWER_LINK, overlap="auto")
    wanted = run(plain, values, trained=False)
    error = worst(run(ours, values, trained=False), wanted)
    return error, sites


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_values_where_nothing_is_equal_on_all_ranks(size, request):
    ranks = request.getfixturevalue("two_ranks" if size == 2 else "four_ranks")
    for found in ranks.run(compare, list(SPLIT)):
        assert {name: error for name, (error, _) in found.items() if not error < 1} == {}
        assert all(sites == ["rewritten"] * 2 for _, sites in found.values())


def test_a_wrong_half_shows(two_ranks):
    for found in two_ranks.run(compare, ["llama"], (Averaged(), OverlapChains())):
        assert not found["llama"][0] < 1
