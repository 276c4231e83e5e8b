"""Ranks whose graphs send differently: one error at once on all; none where they meet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import overlapc
from overlapc.graphs.linear import joint
from overlapc.passes import dispatch_linears
from overlapc.planning.linear.regions import LinearEntry, Regions
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.tuned import TunedPlan
from overlapc.runtime.machine import this_machine
from overlapc.runtime.ranks import groups
from tests.ranks import Ranks
from tests.targets import FAST_LINK, SLOW_LINK


@contextmanager
def ranks_with(cache: Path) -> Iterator[Ranks]:
    ranks = Ranks(2, environment={"TORCHINDUCTOR_CACHE_DIR": str(cache)})
    try:
        yield ranks
    finally:
        ranks.close()


@pytest.fixture
def fresh_ranks(tmp_path) -> Iterator[Ranks]:
    """With a cache of their own: nothing is compiled yet."""
    with ranks_with(tmp_path / "inductor") as ranks:
        yield ranks


def reduced(y):
    return functional.all_reduce(y, "sum", dist.group.WORLD)


def of_which_one_cannot_be_cut(rank, target, whole):
    """Two all-reduces after GEMMs; some ranks add up rows before they send the second."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    w, v = torch.randn(64, 64), torch.randn(128, 300)
    x, z = torch.randn(512, 64), torch.randn(512, 300)

    def two(x, z):
        y = z @ v.t()
        return reduced(x @ w.t()).relu(), reduced(y.cumsum(0) if rank in whole else y)

    compiled = torch.compile(two, backend="overlapc", options={"target": target})
    with torch.no_grad():
        found, wanted = compiled(x, z), (x.double() @ w.double().t(), z.double() @ v.double().t())
        wanted = wanted[0], wanted[1].cumsum(0) if rank in whole else wanted[1]
    for tensor in wanted:
        dist.all_reduce(tensor)
    pairs = ((found[0], wanted[0].relu()), (found[1], wanted[1]))
    return max(((f.double() - t).norm() / t.norm()).item() for f, t in pairs)


def error_at_once(ranks):
    """What both ranks say of a chain that one of them alone cuts; the default timeout is longer."""
    started = time.monotonic()
    outcomes = ranks.outcomes(of_which_one_cannot_be_cut, SLOW_LINK, (0,))
    assert time.monotonic() - started < 45
    for _, error in outcomes:
        assert "DisagreementError" in error
        assert "they send collective 2 of a graph differently" in error
        assert "Rank 0: torch's all_reduce at" in error
        assert "Rank 1: overlapc's gemm_all_reduce at" in error
        assert "equal sizes" in error


def test_a_chain_that_one_rank_alone_cuts_is_an_error_at_once(fresh_ranks):
    error_at_once(fresh_ranks)
    # Nothing was left in flight, and graphs that are alike are right.
    assert max(fresh_ranks.run(of_which_one_cannot_be_cut, SLOW_LINK, ())) < 1e-5


@pytest.mark.long
def test_a_chain_that_one_rank_alone_cuts_is_an_error_from_a_warm_cache(tmp_path):
    cache = tmp_path / "inductor"
    with ranks_with(cache) as ranks:
        error_at_once(ranks)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.sent")}
    assert len(written) >= 2
    with ranks_with(cache) as ranks:
        error_at_once(ranks)
    now = {path: path.stat().st_mtime_ns for path in cache.rglob("*.sent")}
    assert now == written, "no pass ran: what was compared was found in the cache"


def broken_on_rank_0(rank):
    """One rank's graph ends after the first of two collectives."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    x, w, v = torch.randn(512, 64), torch.randn(64, 64), torch.randn(96, 64)

    def twice(x):
        y = reduced(x @ w.t())
        if rank == 0:
            torch._dynamo.graph_break()
        return reduced(y @ v.t())

    with torch.no_grad():
        found = torch.compile(twice, backend="overlapc", options={"target": SLOW_LINK})(x)
    wanted = x.double() @ w.double().t()
    dist.all_reduce(wanted)
    wanted = wanted @ v.double().t()
    dist.all_reduce(wanted)
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def test_a_graph_that_breaks_on_one_rank_only_meets_the_whole_one(fresh_ranks):
    assert max(fresh_ranks.run(broken_on_rank_0)) < 1e-5


class Flat(LinearTable):
    """A table in which a generated kernel wins at few rows, whatever the layer."""

    def entry(self, problem):
        return LinearEntry(problem, Regions(1, 3, 9), ())


def joined_on_rank_0(rank, keeps_order):
    """Two all-reduces, of which the first reads the first of two layers of the same rows. Rank 0
    has few of these, so that there one op computes both layers; on its processor as on a GPU."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    shapes = ((4, 200)[rank], 64), (96,), (64, 96), (64, 96)
    operands = [torch.randn(shape) for shape in shapes]

    def layers(x, z, w, v):
        first = reduced((x @ w).sum(0))
        return first, reduced(z.sin()), x @ v

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(dispatch_linears, "may_fuse", lambda layer: True)
        patch.setattr(dispatch_linears, "_table", lambda device: Flat(this_machine(device)))
        if not keeps_order:
            patch.setattr(joint, "is_moved", lambda *_: False)
        stack.enter_context(torch.no_grad())
        compiled = torch.compile(layers, backend="overlapc", options={"target": FAST_LINK})
        found, wanted = compiled(*operands), layers(*(one.double() for one in operands))
    return [(f - t).abs().max().item() for f, t in zip(found, wanted, strict=True)]


@pytest.mark.parametrize(
    "keeps_order", [True, pytest.param(False, marks=pytest.mark.long)], ids=["", "mutant"]
)
def test_a_layer_that_one_rank_joins_keeps_collectives_in_their_order(fresh_ranks, keeps_order):
    """The mutant sends the second before the first on one rank: each gets the other's."""
    for errors in fresh_ranks.run(joined_on_rank_0, keeps_order, timeout=60):
        assert (max(errors) < 1e-3) == keeps_order, errors


def of_bias_on_rank_0(rank, ways):
    """A layer whose bias rank 0 alone adds, as Megatron's do. What is measured of each rank's work
    is cut, or not at all ("whole", "cut" or ""); the others' sites, and how wrong the result is."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    x, w = torch.randn(512, 64), torch.randn(64, 64)
    bias = torch.randn(64) if rank == 0 else None

    def layer(x):
        return reduced(torch.nn.functional.linear(x, w, bias))

    with torch.no_grad():
        (site,) = overlapc.explain(layer, options={"target": FAST_LINK})(x).sites
        problems = [None, None]
        dist.all_gather_object(problems, site.plan.problem.resolved())
        rows = {"cut": (256, 256), "whole": (512,)}
        tuned = [
            TunedPlan(p, rows[way], 1e-3) for p, way in zip(problems, ways, strict=True) if way
        ]
        target = replace(FAST_LINK, tuned=tuple(tuned))
        found = torch.compile(layer, backend="overlapc", options={"target": target})(x)
    wanted = x.double() @ w.double().t() + (0 if bias is None else bias.double())
    dist.all_reduce(wanted)
    error = ((found.double() - wanted).norm() / wanted.norm()).item()
    (made,) = overlapc.explain(layer, options={"target": target})(x).sites
    return made.decision, made.code, error


UNLIKE = {
    "of rank 0": (("cut", ""), "rewritten", ["measured_best", "measured_alike"]),
    "of rank 1": (("", "cut"), "rewritten", ["measured_alike", "measured_best"]),
    "one is whole": (("cut", "whole"), "kept", ["measured_alike", "measured_best"]),
    "whole": (("whole", ""), "kept", ["measured_best", "measured_alike"]),
}


@pytest.mark.long  # of its rules are tests in tests/planning/test_target.py
@pytest.mark.parametrize("case", UNLIKE)
def test_what_is_measured_of_one_ranks_work_decides_for_all(two_ranks, case):
    """Predicted is another plan than was measured, for one rank at least. Mutants: what was
    measured holds for the very work alone; each rank's own counts before what is whole; ranks that
    only move a bias count as unlike ranks for what a kernel does."""
    ways, decision, codes = UNLIKE[case]
    found = two_ranks.run(of_bias_on_rank_0, ways, timeout=60)
    assert [code for _, code, _ in found] == codes
    for made, _, error in found:
        assert made == decision
        assert error < 1e-5


SENDS = ["overlapc's gemm_all_reduce at a (f.py:1)", "torch's all_reduce at b (f.py:2)"]
ELSEWHERE = ["overlapc's gemm_all_reduce at c (g.py:9)", "torch's all_reduce at d (g.py:8)"]


def agreed(rank, mine, seconds=20.0):
    """What first uses of one set of choices after another raise, and seconds taken."""
    said, started = [], time.monotonic()
    for number, sends in enumerate(mine[rank]):
        try:
            groups.agree_once(dist.group.WORLD, f"choices {number}", seconds, sends)
            said.append("")
        except groups.DisagreementError as error:
            said.append(str(error))
    return said, time.monotonic() - started


MET = {
    "equal": (SENDS, SENDS),
    "another place": (SENDS, ELSEWHERE),
    "one ends earlier": (SENDS[:1], SENDS),
    "one has none here": ([], SENDS),
    "one from a cache": (None, SENDS),
    "both from a cache": (None, None),
}
UNMET = {
    "who": (SENDS[1:], SENDS),
    "swapped": (SENDS[::-1], SENDS),
    "who, with more after it": (SENDS[:1], [*SENDS[1:], *SENDS]),
    "what": (["torch's all_reduce at a (f.py:1)"], ["torch's reduce_scatter_tensor at a (f.py:1)"]),
}


def test_what_meets_and_what_does_not(fresh_ranks):
    """One after another: a comparison that one rank alone asks for would keep it waiting."""
    cases = [*MET.values(), *UNMET.values(), *MET.values()]
    found = fresh_ranks.run(agreed, list(zip(*cases, strict=True)))
    for said, taken in found:
        assert taken < 10
        wrong = said[len(MET) : -len(MET)]
        assert not any(said[: len(MET)] + said[-len(MET) :])
        assert all("collective 1 of a graph differently" in text for text in wrong)
