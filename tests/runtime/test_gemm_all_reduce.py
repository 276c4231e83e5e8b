"""The op over real gloo ranks: every schedule and size against float64, and what it sends."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
import torch.distributed as dist

from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.runtime import ops, reference
from overlapc.runtime.plans import remember
from overlapc.runtime.spec import ChainSpec
from tests.targets import FAST_LINK, SLOW_LINK

SIZES = [
    (512, 128, 64),
    (513, 96, 33),
    (300, 1, 64),
    (64, 64, 0),
    (1, 8, 8),
    (0, 8, 8),
    (200, 7, 3),
]
BIASES = ("none", "columns", "row", "full", "rows")


def spec(target, schedule="auto", reduce="sum", **more):
    remember(target)
    fields = {"target": target.fingerprint, "options": "test", "site": "test.0", **more}
    return ChainSpec(schedule=schedule, reduce=reduce, **fields).text()


def inputs(rank, m, n, k, bias, dtype=torch.float32, transposed=True):
    generator = torch.Generator().manual_seed(1000 * rank + m + n + k)
    a = torch.randn(m, k, generator=generator, dtype=dtype)
    b = torch.randn(n, k, generator=generator, dtype=dtype).t()
    if not transposed:
        b = b.contiguous()
    shape = {"columns": (n,), "row": (1, n), "full": (m, n), "rows": (m, 1)}.get(bias)
    return a, b, None if shape is None else torch.randn(shape, generator=generator, dtype=dtype)


def worst_error(rank, schedule, reduce, sizes, bias, dtype):
    a, b, c = inputs(rank, *sizes, bias, dtype)
    given = a.clone(), b.clone()
    found = torch.ops.overlapc.gemm_all_reduce(a, b, c, "0", spec(SLOW_LINK, schedule, reduce))
    assert torch.equal(a, given[0])
    assert torch.equal(b, given[1])
    wide = [None if t is None else t.double() for t in (a, b, c)]
    wanted = reference.gemm_all_reduce(*wide, "0", "sum") / (2 if reduce == "avg" else 1)
    assert found.shape == wanted.shape
    assert found.is_contiguous()
    return ((found.double() - wanted).norm() / wanted.norm().clamp(min=1)).item()


def matrix(rank):
    errors = {}
    for schedule, sizes in itertools.product(("auto", "serial", "chunked"), SIZES):
        for bias in BIASES:
            error = worst_error(rank, schedule, "sum", sizes, bias, torch.float32)
            errors[schedule, sizes, bias] = error
    errors["float64"] = worst_error(rank, "chunked", "sum", SIZES[1], "columns", torch.float64)
    # bfloat16 keeps 8 bits: the same bound in units of its own rounding.
    rounding = torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps
    error = worst_error(rank, "chunked", "sum", SIZES[1], "none", torch.bfloat16)
    errors["bfloat16"] = error / rounding
    return errors


def test_every_size_schedule_and_bias_against_float64(two_ranks):
    for errors in two_ranks.run(matrix):
        wrong = {case: error for case, error in errors.items() if not error < 1e-6}
        assert not wrong


def every_call_sends_what_the_plan_says(rank):
    """Count the collectives that are really started, and their elements."""
    sent = []
    original = vars(dist.ProcessGroup)["allreduce"]  # as stored: reading it binds it

    def counted(self, tensors, options):
        sent.append(tensors[0].shape[0])
        return original.__get__(self)(tensors, options)

    dist.ProcessGroup.allreduce = counted
    try:
        for sizes in SIZES[:4]:
            a, b, _ = inputs(rank, *sizes, "none")
            torch.ops.overlapc.gemm_all_reduce(a, b, None, "0", spec(SLOW_LINK))
            yield sizes, tuple(sent)
            sent.clear()
    finally:
        dist.ProcessGroup.allreduce = original


def collect_sent(rank):
    return list(every_call_sends_what_the_plan_says(rank))


def test_what_is_sent_is_the_plan_on_every_rank(two_ranks):
    first, second = two_ranks.run(collect_sent)
    assert first == second
    for (m, n, k), rows in first:
        wanted = plan(Problem(m, n, k, "float32", "all_reduce", 2), SLOW_LINK)
        assert rows == wanted.rows
    assert max(len(rows) for _, rows in first) > 2  # otherwise nothing was cut


def count_calls(rank):
    ops.calls_of("counted.1").clear()
    a, b, _ = inputs(rank, 512, 128, 64, "none")
    for target, times in ((SLOW_LINK, 3), (FAST_LINK, 2)):
        for _ in range(times):
            text = spec(target, site="counted.1")
            torch.ops.overlapc.gemm_all_reduce(a, b, None, "0", text)
    return dict(ops.calls_of("counted.1"))


def test_calls_are_counted_by_schedule(two_ranks):
    assert two_ranks.run(count_calls) == [{"chunked": 3, "serial": 2}] * 2


def four_ranks_sum(rank):
    a, b, c = inputs(rank, 512, 64, 32, "columns")
    found = torch.ops.overlapc.gemm_all_reduce(a, b, c, "0", spec(SLOW_LINK))
    wanted = reference.gemm_all_reduce(a.double(), b.double(), c.double(), "0", "sum")
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.long
def test_four_ranks(four_ranks):
    assert max(four_ranks.run(four_ranks_sum)) < 1e-6


def opcheck_results(rank):
    a, b, c = inputs(rank, 512, 64, 32, "columns")
    args = (a, b, c, "0", spec(SLOW_LINK))
    return torch.library.opcheck(torch.ops.overlapc.gemm_all_reduce.default, args)


def test_opcheck(two_ranks):
    for results in two_ranks.run(opcheck_results):
        assert set(results.values()) == {"SUCCESS"}


def seconds_of(function, calls=300, rounds=9):
    function()
    best = 1.0
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


@pytest.mark.parametrize("target", [FAST_LINK, SLOW_LINK], ids=["serial", "chunked"])
def test_a_call_adds_at_most_30_us_to_its_gemms_and_collectives(target, fake_group):
    """The fake group sends nothing, so what is left beside the GEMMs is Python's and ours."""
    m, n, k = 512, 32, 8
    a, b = torch.randn(m, k), torch.randn(k, n)
    text = spec(target)
    rows = plan(Problem(m, n, k, "float32", "all_reduce", 2), target).rows
    assert (len(rows) > 1) == (target is SLOW_LINK)
    options = dist.AllreduceOptions()

    def direct():
        out = a.new_empty((m, n))
        bands, slices = out.split(rows), a.split(rows)
        works = []
        for band, rows_of_a in zip(bands, slices, strict=True):
            torch.mm(rows_of_a, b, out=band)
            works.append(fake_group.allreduce([band], options))
        for work in works:
            work.wait()

    def ours():
        torch.ops.overlapc.gemm_all_reduce.default(a, b, None, "0", text)

    assert seconds_of(ours) - seconds_of(direct) < 30e-6
