"""Chains cut along columns over real gloo ranks against float64, and mutants that this catches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import overlapc
from overlapc.planning.target import Target
from overlapc.runtime import ops, preparing, sizing
from overlapc.runtime.chunked.column_producers import ColumnProducer
from overlapc.runtime.plans import plan_call
from overlapc.runtime.programs.program import ROWS, WHOLE, Step
from overlapc.runtime.ranks import agreement
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.sizing import problem_of
from overlapc.runtime.spec import ChainSpec
from tests.runtime.chains import call, chain, errors_of, poisoned, ragged
from tests.runtime.matrix import forget
from tests.runtime.programs.cases import CASES, Case, K, N, operand, value
from tests.targets import machine

KINDS = ("gemm_all_reduce", "gemm_reduce_scatter", "gemm_all_to_all")
TARGET = machine("by-columns", 4e7, world_sizes=(2, 3, 4))
BOUND = 2e-6
"""Of the relative error of float32; coarser dtypes by their rounding."""

GEMM = Step("aten.mm.default", (operand(0), operand(1)))


def normal(generator: torch.Generator, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def scaled(units: int, g: torch.Generator) -> list[torch.Tensor]:
    """By row and by column; the residual is no contiguous tensor."""
    shapes = (units, K), (K, N), (units, 1), (N,)
    return [*(normal(g, *shape) for shape in shapes), normal(g, N, units).t()]


def divided(units: int, g: torch.Generator) -> list[torch.Tensor]:
    return [normal(g, units, K), normal(g, N, K).t(), normal(g, 1, N)]


def halves(units: int, g: torch.Generator) -> list[torch.Tensor]:
    return [normal(g, *shape, dtype=torch.bfloat16) for shape in ((units, K), (K, N), (units, N))]


MINE = {
    "scaled": Case(
        (ROWS, WHOLE, ROWS, WHOLE, ROWS),
        (
            GEMM,
            Step("aten.mul.Tensor", (value(0), operand(2))),
            Step("aten.mul.Tensor", (operand(3), value(1))),
            Step("aten.add.Tensor", (value(2), operand(4)), (("alpha", 0.5),)),
        ),
        scaled,
        kept=(value(0), value(3), value(1), value(3)),
    ),
    "divided": Case(
        (ROWS, WHOLE, WHOLE),
        (
            Step("aten.div.Tensor", (operand(2), 2)),
            Step("aten.addmm.default", (value(0), operand(0), operand(1))),
        ),
        divided,
    ),
    "bfloat16": Case(
        (ROWS, WHOLE, ROWS),
        (GEMM, Step("aten.add.Tensor", (value(0), operand(2)))),
        halves,
        kept=(value(0),),
        rounding=torch.bfloat16,
    ),
}
ALL = {**{name: CASES[name] for name in ("mm", "strided", "addmm", "addmm_rows", "rich")}, **MINE}


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many groups each run by columns had."""
    original, found = ColumnProducer.__call__, []

    def run(self: ColumnProducer, *args) -> list[torch.Tensor]:
        found.append(len(self.columns))
        return original(self, *args)

    with patch.object(ColumnProducer, "__call__", run):
        yield found


def run_all(rank: int, kinds: tuple[str, ...] = KINDS, every: int = 1) -> tuple[dict, int]:
    """Errors above their bounds by trial, and how many trials were run by columns."""
    ranks, wrong = dist.get_world_size(), {}
    trials = [
        (kind, name, each, outer)
        for kind in kinds
        for name in ALL
        # One row of every rank, a few, and none; ranks interleaved as in a middle dimension.
        for each, outer in ((13, 1), (1, 1), (5, 3), (0, 1))
        if outer == 1 or kind != "gemm_all_reduce"
    ]
    forget()
    with poisoned(), counted() as runs:
        for seed, (kind, name, each, outer) in enumerate(trials[::every]):
            case = ALL[name]
            units = each * outer * (1 if kind == "gemm_all_reduce" else ranks)
            operands = case.operands(units, torch.Generator().manual_seed(97 * rank + seed))
            reduce = "avg" if seed % 3 == 0 and kind != "gemm_all_to_all" else "sum"
            spec = chain(kind, case.producer(), TARGET, schedule="chunked", reduce=reduce)
            with ragged(seed, "columns"):
                error = max(errors_of(spec, operands, outer))
            bound = BOUND * torch.finfo(case.rounding).eps / torch.finfo(torch.float32).eps
            if not error < bound:
                wrong[f"{kind} {name} {each} {outer}"] = error / bound
    forget()
    assert len(runs) > 1
    assert min(runs) > 1
    return wrong, len(runs)


def test_every_chain_by_columns(two_ranks):
    for wrong, runs in two_ranks.run(run_all):
        assert wrong == {}
        assert runs == len(ALL) * (2 + 3 + 3)  # none where there are no rows


def test_some_chains_on_four_ranks(four_ranks):
    for wrong, runs in four_ranks.run(run_all, KINDS, 5):
        assert wrong == {}
        assert runs > 10


SPLITS = ((3, 4), (2, 6)), ((5, 5), (5, 5)), ((0, 7), (1, 0)), ((1, 0), (0, 1)), ((0, 0), (0, 9))
"""Rows that each of two ranks sends to each."""


def uneven(rank: int, wishes: tuple[str, str]) -> tuple[float, int]:
    """The worst error of uneven all-to-alls, ranks wishing for these cuts; runs by columns."""
    forget()
    case, worst = ALL["scaled"], 0.0
    spec = chain("gemm_all_to_all", case.producer(), TARGET, schedule="chunked")
    with poisoned(), counted() as runs:
        for seed, sends in enumerate(SPLITS):
            mine, come = sends[rank], tuple(row[rank] for row in sends)
            operands = case.operands(sum(mine), torch.Generator().manual_seed(7 * rank + seed))
            with ragged(seed, wishes[rank]):
                worst = max(worst, *errors_of(spec, operands, 1, come, mine))
    forget()
    return worst, len(runs)


@pytest.mark.parametrize("wishes", [("columns", "columns"), ("columns", "rows")])
def test_uneven_rows_by_columns_where_all_wish_it(wishes, two_ranks):
    for worst, runs in two_ranks.run(uneven, wishes):
        assert worst < BOUND
        assert runs == (len(SPLITS) if wishes == ("columns", "columns") else 0)


@contextmanager
def always_the_first_columns() -> Iterator[None]:
    """Every group has as many columns as it should, and starts at the first one."""
    original = preparing.ranges

    def ranges(counts):
        return [(0, end - start) for start, end in original(counts)]

    with patch.object(preparing, "ranges", ranges):
        yield


@contextmanager
def put_nothing() -> Iterator[None]:
    """What has come stays where it came to: a copy to a place in it changes nothing."""
    original = torch.Tensor.copy_

    def copy_(self, other, *args):
        return self if self._base is not None else original(self, other, *args)

    with patch.object(torch.Tensor, "copy_", copy_):
        yield


@contextmanager
def biases_whole() -> Iterator[None]:
    """Of what is added to columns, all groups take the first columns."""
    original = torch.Tensor.narrow

    def narrow(self, dim, start, length):
        return original(self, dim, 0 if self.dim() == 1 else start, length)

    with patch.object(torch.Tensor, "narrow", narrow):
        yield


def run_mutated(
    rank: int, mutant: Callable[[], AbstractContextManager[None]], kinds: tuple[str, ...]
) -> dict:
    try:
        with mutant():
            return run_all(rank, kinds, every=2)[0]
    finally:
        dist.barrier()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mutant", [always_the_first_columns, put_nothing, biases_whole])
def test_mutants_are_caught(two_ranks, mutant, kind):
    assert all(two_ranks.run(run_mutated, mutant, (kind,)))


# Where both were to cut columns, and rank 1 cannot.

SIDE = 96


def unlike(rank: int, by: tuple[str, str], able: bool) -> tuple[float, dict[str, int]]:
    """The error of a square chain that ranks are told to cut so, and its calls; ``able``: rank 1's
    chain can be cut by columns."""
    forget()
    spec = chain("gemm_all_reduce", CASES["mm"].producer(), TARGET, site="unlike.0")
    ops.calls_of("unlike.0").clear()
    generator = torch.Generator().manual_seed(rank)
    operands = [normal(generator, SIDE, K), normal(generator, K, SIDE)]
    cut = agreement.Cut("chunked", (SIDE // 4, 3 * SIDE // 4), by[rank])
    no_columns = patch.object(sizing, "_column_operands", lambda *_: None)
    with (
        patch.object(preparing, "cut_of", lambda plan: cut),
        nullcontext() if able or rank == 0 else no_columns,
    ):
        (error,) = errors_of(spec, operands)
    forget()
    return error, dict(ops.calls_of("unlike.0"))


def test_a_cut_that_one_rank_cannot_make_is_made_by_none(two_ranks):
    for error, calls in two_ranks.run(unlike, ("columns", "columns"), False):
        assert error < BOUND
        assert calls == {"serial": 1}


def unable_later(rank: int) -> tuple[float, dict[str, int]]:
    """The worst error of a chain of which rank 1's second graph computes no columns, and its calls
    there."""
    forget()
    spec = chain("gemm_all_reduce", CASES["mm"].producer(), TARGET, site="unlike.1")
    generator = torch.Generator().manual_seed(rank)
    cut = agreement.Cut("chunked", (SIDE // 4, 3 * SIDE // 4), "columns")
    errors = []
    with patch.object(preparing, "cut_of", lambda plan: cut):
        for rows in (SIDE, SIDE // 2):
            operands = [normal(generator, rows, K), normal(generator, K, SIDE)]
            no_columns = patch.object(sizing, "_column_operands", lambda *_: None)
            with no_columns if rank and rows < SIDE else nullcontext():
                errors += errors_of(spec, operands)
    forget()
    return max(errors), dict(ops.calls_of("unlike.1"))


def test_who_computes_no_columns_sends_them_all_the_same(two_ranks):
    for error, calls in two_ranks.run(unable_later):
        assert error < BOUND
        assert calls == {"chunked": 2}


def test_ranks_that_cut_otherwise_are_caught(two_ranks):
    found = two_ranks.run(unlike, ("rows", "columns"), True)
    assert all(error > 0.1 for error, _ in found)


# As planned, from a target where packing the weight takes long.


def packing() -> Target:
    """A wide weight is packed again at each call; the link takes about as long."""
    slow = machine("packing", 2e8)
    seconds = {"pack_bytes_per_second": 1e8, "pointwise_bytes_per_second": 1e10}
    rates = tuple(replace(each, flops_per_second=2e10, **seconds) for each in slow.gemm)
    return replace(slow, gemm=rates)


PACKING = packing()
WIDE = (64, 32, 1000)
"""m, k, n: columns are no multiple of a unit's."""


def wide_spec(kind: str, **more) -> ChainSpec:
    return chain(kind, CASES["addmm"].producer(), PACKING, site=f"wide.{kind}", **more)


def sent_as_planned(rank: int, kind: str) -> tuple:
    m, k, n = WIDE
    generator = torch.Generator().manual_seed(rank)
    operands = [normal(generator, m, k), normal(generator, n, k).t(), normal(generator, n)]
    spec, started, original = wide_spec(kind), [], Sender.start

    def start(self, group, out, sent, *sizes):
        started.append(tuple(sent.shape))
        return original(self, group, out, sent, *sizes)

    forget()
    ops.calls_of(spec.site).clear()
    with poisoned(), patch.object(Sender, "start", start):
        (result,) = call(spec, operands)
        again = call(spec, operands)[0]
    assert torch.equal(result, again)
    (error,) = errors_of(spec, operands)
    shapes, dtypes = [t.shape for t in operands], [t.dtype for t in operands]
    plan = plan_call(spec.target, spec.schedule, problem_of(spec, shapes, dtypes, 2))
    return error, started, plan.by, plan.rows, dict(ops.calls_of(spec.site))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_is_the_plan_by_columns(two_ranks, kind):
    m, _, n = WIDE
    for error, started, by, columns, calls in two_ranks.run(sent_as_planned, kind):
        assert error < BOUND
        assert by == "columns"
        assert len(columns) > 1
        assert sum(columns) == n
        assert started == 2 * [(m, count) for count in columns]
        assert calls == {"chunked": 3}


def compiled_error(rank: int) -> tuple[float, list]:
    """The error of a compiled row-parallel layer, and what its site was planned and ran."""

    def project(x, weight, bias):
        y = torch.nn.functional.linear(x, weight, bias)
        return functional.all_reduce(y, "sum", dist.group.WORLD).tanh()

    torch._dynamo.reset()
    m, k, n = WIDE
    g = torch.Generator().manual_seed(rank)
    given = normal(g, 2, m // 2, k), normal(g, n, k), normal(g, n)
    with torch.no_grad():
        found = torch.compile(project, backend="overlapc", options={"target": PACKING})(*given)
    wanted = project(*(tensor.double() for tensor in given))
    sites = [site for site in overlapc.report().sites if site.plan and site.plan.problem.n == n]
    error = ((found.double() - wanted).norm() / wanted.norm()).item()
    return error, [(site.plan.by, len(site.plan.rows) > 1, dict(site.calls)) for site in sites]


def test_a_compiled_layer_runs_by_columns(two_ranks):
    for error, sites in two_ranks.run(compiled_error):
        assert error < 1e-5
        assert sites == [("columns", True, {"chunked": 1})]
