"""Which programs may be cut along the columns of what they send, and what of each operand."""

from __future__ import annotations

import pytest
import torch

from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Step
from overlapc.runtime.sizing import column_operands, problem_of
from tests.runtime.chains import chain
from tests.runtime.programs.cases import CASES, operand, value
from tests.targets import SLOW_LINK

M, N, K = 6, 10, 4
X, W = ((M, K), ROWS), ((K, N), WHOLE)
GEMM = Step("aten.mm.default", (operand(0), operand(1)))
BIASED = Step("aten.addmm.default", (operand(2), operand(0), operand(1)))


def step(op: str, *args: object) -> Step:
    return Step(op, args)


def roles(*given, steps, sent=None, kept=(), axis=0, kind="gemm_all_reduce", receives=()):
    """Which operands are cut, given (shape, mode) of each; None where none may be."""
    modes, last = tuple(mode for _, mode in given), value(len(steps) - 1)
    program = Program(modes, tuple(steps), sent or last, tuple(kept))
    spec = chain(kind, program, SLOW_LINK, axis=axis)
    shapes, dtypes = [shape for shape, _ in given], [torch.float32] * len(given)
    problem = problem_of(spec, shapes, dtypes, 2, receives)
    cut = column_operands(spec, shapes, dtypes)
    assert problem.cuts_columns == (cut is not None)
    assert not problem.cuts_columns or problem.n == shapes[1][1]
    return cut if problem.cuts_columns else None


BEFORE, AFTER = "aten.mul.Tensor", "aten.add.Tensor"
CAST = "prims.convert_element_type.default"
CUT = {
    "mm": ((X, W), [GEMM], (False, True)),
    "bias": ((X, W, ((N,), WHOLE)), [BIASED], (False, True, True)),
    "bias of one": ((X, W, ((1,), WHOLE)), [BIASED], (False, True, False)),
    "bias of rows": ((X, W, ((M, 1), ROWS)), [BIASED], (False, True, False)),
    "bias of both": ((X, W, ((M, N), ROWS)), [BIASED], (False, True, True)),
    "residual": ((X, W, ((M, N), ROWS)), [GEMM, step(AFTER, value(0), operand(2))],
                 (False, True, True)),
    "a scale of rows": ((X, W, ((M, 1), ROWS)), [GEMM, step(BEFORE, value(0), operand(2))],
                        (False, True, False)),
    "a scale": ((X, W, ((), WHOLE)), [GEMM, step(BEFORE, value(0), operand(2))],
                (False, True, False)),
    "a scale made of one": (
        (X, W, ((M, 1), ROWS)),
        [GEMM, step("aten.exp.default", operand(2)), step(BEFORE, value(1), value(0))],
        (False, True, False),
    ),
    "a divided bias": (
        (X, W, ((N,), WHOLE)),
        [step("aten.div.Tensor", operand(2), 2),
         Step("aten.addmm.default", (value(0), operand(0), operand(1)))],
        (False, True, True),
    ),
    "a cast weight": (
        (X, W),
        [step(CAST, operand(1), torch.float32),
         Step("aten.mm.default", (operand(0), value(0)))],
        (False, True),
    ),
    "a cast": ((X, W), [GEMM, step(CAST, value(0), torch.bfloat16)], (False, True)),
    "another cast": ((X, W), [GEMM, Step("aten._to_copy.default", (value(0),),
                                         (("dtype", torch.float16),))], (False, True)),
    "bytes": ((X, W), [GEMM, step(CAST, value(0), torch.float8_e4m3fn),
                       step("aten.view.dtype", value(1), torch.uint8)], (False, True)),
    "a square weight": ((((M, N), ROWS), ((N, N), WHOLE)), [GEMM], (False, True)),
    "an operand that nobody reads": ((X, W, ((N,), WHOLE)), [GEMM], (False, True, False)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gemm_all_reduce", "gemm_reduce_scatter", "gemm_all_to_all"])
@pytest.mark.parametrize("name", CUT)
def test_columns_may_be_cut(name: str, kind: str) -> None:
    given, steps, wanted = CUT[name]
    assert roles(*given, steps=steps, kind=kind) == wanted


def test_what_is_kept_is_cut_alike() -> None:
    steps = [GEMM, step("aten.relu.default", value(0))]
    assert roles(X, W, steps=steps, kept=(value(0), value(1))) == (False, True)


REFUSED = {
    "two GEMMs": ((X, W, X, W), [GEMM, Step("aten.mm.default", (operand(2), operand(3))),
                                 step(AFTER, value(0), value(1))]),
    "the left operand is computed": (
        (X, W), [step("aten.relu.default", operand(0)),
                 Step("aten.mm.default", (value(0), operand(1)))]),
    "one operand has two roles": (
        (((M, N), ROWS), ((N, N), WHOLE)), [GEMM, step(AFTER, value(0), operand(0))]),
    "one operand is both of a GEMM": (
        (((M, M), ROWS), ((M, M), WHOLE)), [Step("aten.mm.default", (operand(0), operand(0)))]),
    "a sum over the row": ((X, W), [GEMM, step("aten.sum.dim_IntList", value(0), (1,), True),
                                    step(BEFORE, value(0), value(1))]),
    "a softmax over the row": ((X, W), [GEMM, step("aten._softmax.default", value(0), 1, False)]),
    "a sum over the row of another": (
        (X, W, ((M, N), ROWS)), [GEMM, step("aten.sum.dim_IntList", operand(2), (1,), True),
                                 step(BEFORE, value(0), value(1))]),
    "a view of columns": ((X, W), [GEMM, step("aten.view.default", value(0), (-1, 2, N // 2))]),
    "a view and back": ((X, W), [GEMM, step("aten.view.default", value(0), (-1, 2, N // 2)),
                                 step("aten.reshape.default", value(1), (-1, N))]),
    "a transposed weight": (
        (X, ((N, K), WHOLE)), [step("aten.t.default", operand(1)),
                               Step("aten.mm.default", (operand(0), value(0)))]),
    "a step that nobody reads": ((X, W), [GEMM, step("aten.relu.default", operand(1)),
                                          step("aten.relu.default", value(0))]),
    "random numbers": ((X, W), [GEMM, step("aten.bernoulli.default", value(0))]),
    "writing in place": ((X, W), [GEMM, step("aten.relu_.default", value(0))]),
    "one column": ((X, ((K, 1), WHOLE)), [GEMM]),
    "no GEMM": ((((M, N), ROWS), ((M, N), ROWS)), [step(AFTER, operand(0), operand(1))]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_columns_may_not_be_cut(name: str) -> None:
    given, steps = REFUSED[name]
    assert roles(*given, steps=steps) is None


def test_results_that_are_not_of_the_columns_may_not_be_cut() -> None:
    steps = [GEMM, step("aten.exp.default", operand(2))]
    given = X, W, ((M, 1), ROWS)
    assert roles(*given, steps=steps, sent=value(0), kept=(value(1),)) is None
    assert roles(X, W, steps=[GEMM], kept=(operand(0),)) is None
    assert roles(X, W, ((M, N), ROWS), steps=[GEMM], kept=(operand(2),)) is None


def test_dealt_out_columns_may_not_be_cut_and_uneven_rows_do_not_matter() -> None:
    assert roles(X, W, steps=[GEMM], axis=1, kind="gemm_reduce_scatter") is None
    assert roles(X, W, steps=[GEMM], axis=1) == (False, True)  # an all-reduce deals out nothing
    assert roles(X, W, steps=[GEMM], kind="gemm_all_to_all", receives=(1, 5)) == (False, True)


@pytest.mark.parametrize("name", ["fp8", "fp8_rows", "grouped", "bmm", "baddbmm", "many", "view"])
def test_other_programs_may_not_be_cut(name: str) -> None:
    case = CASES[name]
    tensors = case.operands(8, torch.Generator())
    spec = chain("gemm_all_reduce", case.producer(), SLOW_LINK)
    assert column_operands(spec, [t.shape for t in tensors], [t.dtype for t in tensors]) is None


def test_a_consumer_may_not_be_cut() -> None:
    spec = chain("all_gather_gemm", CASES["mm"].consumer(), SLOW_LINK)
    assert column_operands(spec, [X[0], W[0]], [torch.float32] * 2) is None
    assert not problem_of(spec, [X[0], W[0]], [torch.float32] * 2, 2).cuts_columns
