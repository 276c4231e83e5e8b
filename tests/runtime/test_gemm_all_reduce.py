"""The op over real gloo ranks: every schedule and size against float64, and what it sends."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.runtime.programs.program import ROWS, WHOLE
from tests.runtime.chains import MM, addmm, chain, errors_of
from tests.runtime.test_ops import at_most, seconds_of
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


def spec(target, schedule="auto", bias="none", **more):
    program = MM if bias == "none" else addmm(ROWS if bias in ("full", "rows") else WHOLE)
    return chain("gemm_all_reduce", program, target, schedule=schedule, **more)


def inputs(rank, m, n, k, bias, dtype=torch.float32, transposed=True):
    generator = torch.Generator().manual_seed(1000 * rank + m + n + k)
    a = torch.randn(m, k, generator=generator, dtype=dtype)
    b = torch.randn(n, k, generator=generator, dtype=dtype).t()
    if not transposed:
        b = b.contiguous()
    shape = {"columns": (n,), "row": (1, n), "full": (m, n), "rows": (m, 1)}.get(bias)
    return a, b, None if shape is None else torch.randn(shape, generator=generator, dtype=dtype)


def worst_error(rank, schedule, sizes, bias, dtype):
    tensors = [tensor for tensor in inputs(rank, *sizes, bias, dtype) if tensor is not None]
    (error,) = errors_of(spec(SLOW_LINK, schedule, bias), tensors)
    return error


def matrix(rank):
    errors = {}
    for schedule, sizes in itertools.product(("auto", "serial", "chunked"), SIZES):
        for bias in BIASES:
            error = worst_error(rank, schedule, sizes, bias, torch.float32)
            errors[schedule, sizes, bias] = error
    errors["float64"] = worst_error(rank, "chunked", SIZES[1], "columns", torch.float64)
    # bfloat16 keeps 8 bits: the same bound in units of its own rounding.
    rounding = torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps
    error = worst_error(rank, "chunked", SIZES[1], "none", torch.bfloat16)
    errors["bfloat16"] = error / rounding
    return errors


def test_every_size_schedule_and_bias_against_float64(two_ranks):
    for errors in two_ranks.run(matrix):
        wrong = {case: error for case, error in errors.items() if not error < 1e-6}
        assert not wrong


def four_ranks_sum(rank):
    tensors = inputs(rank, 512, 64, 32, "columns")
    return errors_of(spec(SLOW_LINK, bias="columns"), tensors)


@pytest.mark.long
def test_four_ranks(four_ranks):
    assert max(max(errors) for errors in four_ranks.run(four_ranks_sum)) < 1e-6


@pytest.mark.alone
@pytest.mark.parametrize("target", [FAST_LINK, SLOW_LINK], ids=["serial", "chunked"])
def test_a_call_adds_at_most_30_us_to_its_gemms_and_collectives(target, fake_group, one_thread):
    """The fake group sends nothing, so what is left beside the GEMMs is Python's and ours."""
    m, n, k = 512, 32, 8
    a, b = torch.randn(m, k), torch.randn(k, n)
    text = spec(target).text()
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
        torch.ops.overlapc.gemm_all_reduce.default([a, b], 1, [], [], "0", text)

    # Once is enough: whatever else the machine does only ever adds.
    assert any(seconds_of(ours) - seconds_of(direct) < at_most(30e-6) for _ in range(3))
