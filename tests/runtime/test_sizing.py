"""What is planned for a call: sizes, dtypes and granules of each kind of chain."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from overlapc.errors import ProblemError
from overlapc.planning.problem import Problem
from overlapc.planning.tiles import MOST_SUMS, SPARING_SUMS, Tile
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Step
from overlapc.runtime.sizing import problem_of
from tests.runtime.chains import chain
from tests.runtime.programs.cases import CAPACITY, CASES, EXPERTS, K, N, operand, value
from tests.targets import SLOW_LINK

RANKS = 2


def problem(kind, name, units, receives=(), axis=0):
    case = CASES[name]
    is_consumer = kind.endswith("gemm")
    program = case.consumer() if is_consumer else case.producer()
    tensors = case.operands(units, torch.Generator())
    if kind == "all_gather_gemm":
        tensors[0] = tensors[0][: units // (1 if axis else RANKS)]
    spec = chain(kind, program, SLOW_LINK, axis=axis)
    shapes, dtypes = zip(*((t.shape, t.dtype) for t in tensors), strict=True)
    return problem_of(spec, shapes, dtypes, RANKS, receives)


PRODUCED = {"order": "gemm_first"}
CONSUMED = {"order": "collective_first"}

WANTED = {
    ("gemm_all_reduce", "mm", 7): Problem(
        7, N, K, "float32", "all_reduce", RANKS, **PRODUCED, sent_dtype="float32", row_multiple=1,
        cuts_columns=True, kernel_sums=MOST_SUMS,
    ),
    ("gemm_reduce_scatter", "addmm", 8): Problem(
        8, N, K, "float32", "reduce_scatter", RANKS, **PRODUCED, sent_dtype="float32",
        row_multiple=RANKS, cuts_columns=True, kernel_sums=MOST_SUMS, computes_beside=True,
    ),
    # The sum of two GEMMs is one of twice the depth; their sum is written, the parts are not read.
    ("gemm_reduce_scatter", "sum", 8): Problem(
        8, N, 2 * K, "float32", "reduce_scatter", RANKS, 8 * N * 4, **PRODUCED,
        sent_dtype="float32", row_multiple=RANKS,
    ),
    # A residual is read and three pointwise steps write, the last one in bfloat16.
    ("gemm_all_reduce", "rich", 8): Problem(
        8, N, K, "float32", "all_reduce", RANKS, 8 * N * (4 + 4 + 2), **PRODUCED,
        sent_dtype="bfloat16", row_multiple=1, cuts_columns=True,
    ),
    # Several GEMMs share what is gathered: their columns add up.
    ("all_gather_gemm", "many", 8): Problem(
        8, N + 1 + 5, K, "float32", "all_gather", RANKS, **CONSUMED, sent_dtype="float32",
        row_multiple=RANKS,
    ),
    ("all_to_all_gemm", "fp8_rows", 8): Problem(
        8, N, K, "float8_e4m3fn", "all_to_all", RANKS, **CONSUMED, sent_dtype="float8_e4m3fn",
        row_multiple=RANKS,
    ),
    ("gemm_all_to_all", "fp8_rows", 8): Problem(
        8, N, K, "float8_e4m3fn", "all_to_all", RANKS, **PRODUCED, sent_dtype="bfloat16",
        row_multiple=RANKS, kernel_sums=MOST_SUMS, computes_beside=True,
    ),
    ("gemm_all_to_all", "grouped", 8): Problem(
        8, N, K, "bfloat16", "all_to_all", RANKS, **PRODUCED, sent_dtype="bfloat16",
        row_multiple=RANKS,
    ),
    # A batch is a unit of several rows.
    ("gemm_all_to_all", "bmm", 6): Problem(
        6 * CAPACITY, N, K, "float32", "all_to_all", RANKS, **PRODUCED, sent_dtype="float32",
        row_multiple=CAPACITY * RANKS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WANTED, ids=["-".join(map(str, case)) for case in WANTED])
def test_a_chain_is_one_problem(case):
    found = problem(*case)
    assert replace(found, program="") == WANTED[case]
    # What is more than a product is said (consumers here keep what was gathered).
    assert bool(found.program) == (case[1] != "mm")


def test_columns_are_cut_by_whole_units_and_have_no_local_rows():
    found = problem("all_gather_gemm", "bmm", EXPERTS, axis=1)
    assert (found.m, found.k, found.row_multiple) == (EXPERTS * CAPACITY * RANKS, K, 2 * CAPACITY)
    assert found.local_rows(found.m) == 0


@pytest.mark.parametrize(
    ("shapes", "scales"),
    [(((), ()), "tensor"), (((1, 1), (1,)), "tensor"), (((8, 1), (1, N)), ""), (((), (1, N)), "")],
)
def test_a_problem_says_how_float8_is_scaled(shapes, scales):
    """One number for A and one for B is planned with rates of its own. Mutant: one of them does."""
    step = Step("aten._scaled_mm.default", (*map(operand, range(4)), None, None, torch.bfloat16))
    of_rows = ROWS if len(shapes[0]) == 2 and shapes[0][0] > 1 else WHOLE
    program = Program((ROWS, WHOLE, of_rows, WHOLE), (step,), value(0))
    dtypes = [torch.float8_e4m3fn] * 2 + [torch.float32] * 2
    spec = chain("gemm_all_reduce", program, SLOW_LINK)
    assert problem_of(spec, [(8, K), (K, N), *shapes], dtypes, RANKS).scales == scales


def test_uneven_rows_are_those_that_arrive():
    found = problem("all_to_all_gemm", "mm", 12, receives=(3, 4))
    assert (found.m, found.row_multiple, found.program) == (7, 1, "")


@pytest.mark.parametrize("receives", [(4, 4), (3, 5), (3, 4)])
def test_numbers_of_rows_to_ranks_are_one_problem_whether_equal_or_not(receives):
    """For they say nothing of other ranks, which have to decide alike; a trial computes the whole
    chain. Mutants: groups of as many rows of each rank, where equal; nothing beside the GEMM."""
    found = problem("gemm_all_to_all", "addmm", 8, receives=receives)
    assert (found.deals_unevenly, found.granule, found.parts) == (True, 1, 1)
    assert found.program == problem("gemm_all_to_all", "addmm", 8).program != ""
    come = problem("all_to_all_gemm", "addmm", 8, receives=receives)
    is_even = sum(receives) % RANKS == 0  # as a trial's rows are
    assert bool(come.program) == is_even


PLAIN, ACTIVATED = (
    Program((ROWS, WHOLE), steps, value(len(steps) - 1))
    for steps in (
        (Step("aten.mm.default", (operand(0), operand(1))),),
        (
            Step("aten.mm.default", (operand(0), operand(1))),
            Step("aten.gelu.default", (value(0),)),
        ),
    )
)


def sizes_of(kind, program, shape, axis=0):
    spec = chain(kind, program, SLOW_LINK, axis=axis)
    return problem_of(spec, [shape, (4, 64)], [torch.bfloat16] * 2, RANKS)


def test_a_problem_says_what_a_kernel_of_it_can_hold():
    for kind in ("gemm_all_reduce", "gemm_reduce_scatter"):
        assert sizes_of(kind, PLAIN, (8, 4)).kernel_sums == MOST_SUMS
        assert sizes_of(kind, ACTIVATED, (8, 4)).kernel_sums == SPARING_SUMS
    # Batches, several GEMMs, values beside what is sent: the library's.
    for name in ("bmm", "sum", "rich"):
        assert problem("gemm_all_reduce", name, 8).kernel_sums == 0
    assert problem("all_gather_gemm", "mm", 8).kernel_sums == 0


def test_a_problem_says_how_rows_are_dealt_out():
    spec = chain("gemm_reduce_scatter", PLAIN, SLOW_LINK)
    sizes = [(48, 4), (4, 64)], [torch.bfloat16] * 2, RANKS
    assert problem_of(spec, *sizes).blocks == 1
    assert problem_of(spec, *sizes, outer=3).blocks == 3
    assert problem_of(spec, *sizes, outer=3).run_rows == 48 // 3 // RANKS
    across = chain("gemm_reduce_scatter", PLAIN, SLOW_LINK, axis=1)
    assert problem_of(across, *sizes).parts == 1
    assert problem("gemm_all_to_all", "mm", 12, receives=(3, 9)).deals_unevenly
    assert not problem("all_to_all_gemm", "mm", 12, receives=(3, 9)).deals_unevenly


def in_units(kind, axis, units, rows, ranks):
    """A problem of units of so many rows, and how the ops deal them out."""
    steps = (
        Step("aten.view.default", (operand(0), (-1, 4))),
        Step("aten.mm.default", (value(0), operand(1))),
        Step("aten.view.default", (value(1), (-1, rows, 64))),
    )
    spec = chain(kind, Program((ROWS, WHOLE), steps, value(2)), SLOW_LINK, axis=axis)
    found = problem_of(spec, [(units, rows, 4), (4, 64)], [torch.bfloat16] * 2, ranks)
    return found, Dealing(spec.collective, axis, units, ranks, 0)


@pytest.mark.parametrize("kind", ["gemm_all_reduce", "gemm_reduce_scatter", "gemm_all_to_all"])
@pytest.mark.parametrize("axis", [0, 1])
def test_groups_of_a_kernel_end_between_tiles_of_what_the_ops_compute(kind, axis):
    """Every cut in two, beside the units that the op computes first. Units along dimension 1 may
    have as many rows as the ranks divide. Mutant: `Problem.parts` that ignores the axis."""
    tile = Tile(2, 16, 32, 4, 3)
    for rows, ranks, each in product((1, 2, 3, 4, 6), (2, 3), (2, 3, 4)):
        found, deal = in_units(kind, axis, each * ranks, rows, ranks)
        cuts = [(count, deal.each - count) for count in range(1, deal.each)]
        assert cuts
        for cut in cuts:
            first, second = producer_parts(deal, cut)
            assert found.parts == len(first.computed.slices)
            fits = all(length * rows % tile.block_m == 0 for _, length in first.computed.slices)
            counts = [part.computed.count * rows for part in (first, second)]
            assert found.is_cut_by(counts)
            assert found.is_cut_by(counts, tile=tile) == fits


@pytest.mark.parametrize(("units", "k", "n"), [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_zero_sizes_are_problems(units, k, n):
    mm = Program((ROWS, WHOLE), (Step("aten.mm.default", (operand(0), operand(1))),), value(0))
    spec = chain("gemm_all_reduce", mm, SLOW_LINK)
    found = problem_of(spec, [(units, k), (k, n)], [torch.float32] * 2, RANKS)
    assert found.flops == 0
    assert found.m == units


def test_what_no_target_has_rates_for_is_no_problem():
    spec = chain("gemm_all_reduce", CASES["mm"].producer(), SLOW_LINK)
    with pytest.raises(ProblemError, match="int64"):
        problem_of(spec, [(4, 4), (4, 4)], [torch.int64] * 2, RANKS)
