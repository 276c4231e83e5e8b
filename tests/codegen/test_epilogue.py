"""Epilogues in Triton's interpreter: every op of the table, chains of models, eager's rounding."""

from __future__ import annotations

import itertools

import pytest
import torch

from overlapc.codegen import GemmSpec
from overlapc.codegen.function import function_of
from overlapc.codegen.lowering import SATURATED, SATURATES_FROM
from overlapc.codegen.pointwise import RULES
from tests.codegen.catching import wrong_values
from tests.codegen.epilogue_cases import MODELS, SCALED, chain_of

LEAST_OPS = 60
SIZES = (20, 37, 16)
"""m, n, k: two tile rows, three tile columns, with remainders."""
GROUPS = {"band": (16, 4), "packed": (2, 4)}
"""Of these sizes: rows of each band, and tiles of each group."""


def spec_of(chain, dtype: str, **fields) -> str:
    function = function_of(chain, dtype)
    spec = GemmSpec(dtype, function.values[-1].dtype, 16, 16, 16, epilogue=str(chain), **fields)
    return str(spec)


def test_the_table_is_long():
    names = {op.split(".")[1] for op in RULES}
    assert len(names) >= LEAST_OPS


KINDS = list(
    itertools.product(("bfloat16", "float16", "float32"), ("band", "packed"), (False, True))
)


@pytest.mark.parametrize(
    ("op", "kind"), list(zip(RULES, itertools.cycle(KINDS), strict=False)), ids=str
)
def test_every_op_of_the_table(interpreted, op, kind):
    """Each in one kind of kernel, by turns; in all of them in long runs.

    Mutant: no value of float16 is rounded, which no run in bfloat16 sees.
    """
    dtype, order, signals = kind
    text = spec_of(chain_of(op, dtype), dtype, order=order, signals=signals)
    groups = GROUPS[order] if signals else ()
    interpreted("gemm_cases.run", text, *SIZES, groups, ctas=2)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("op", RULES)
def test_every_op_in_every_dtype_and_order(interpreted, op, dtype):
    chain = chain_of(op, dtype)
    for order in ("band", "packed"):
        for seed in range(3):
            text = spec_of(chain, dtype, order=order)
            groups = (2, 7) if order == "packed" else (16, 26)
            interpreted("gemm_cases.run", text, 42, 48, 33, groups, sweep=4, seed=seed)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", ["band", "packed"])
def test_chains_of_models(interpreted, name, order):
    text = spec_of(MODELS[name], "bfloat16", order=order)
    groups = (2, 7) if order == "packed" else (16, 26)
    interpreted("gemm_cases.run", text, 42, 48, 33, groups, sweep=4)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_scales_of_fp8(interpreted, name, dtype):
    interpreted("gemm_cases.run", spec_of(SCALED[name], dtype), 42, 37, 33, (16, 26))


def test_inputs_follow_rows_that_are_stored_elsewhere(interpreted):
    text = spec_of(MODELS["masked"], "bfloat16")
    interpreted("gemm_cases.run", text, 84, 37, 33, (16, 12), placing=("staged", 3))
    interpreted("gemm_cases.run", text, 84, 37, 33, (16, 48, 20), placing=("rotated", 1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_value_is_rounded_as_eager_rounds_it(interpreted, dtype):
    assert interpreted("rounding_cases.differences", dtype) == 0


def test_without_the_rounding_in_between_values_differ(interpreted):
    rounded = ("    v1 = pointwise.rounded(1.1 * v0, tl.bfloat16)", "    v1 = 1.1 * v0")
    assert interpreted("rounding_cases.differences", "bfloat16", rounded) > 10


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_casts_to_fp8_overflow_as_torch_says(interpreted, dtype):
    if dtype == SATURATED and torch.__version__ < SATURATES_FROM:
        pytest.skip("this torch overflows to NaN, and no such cast is lowered")
    assert interpreted("rounding_cases.fp8_differences", dtype) == 0
    if dtype == "float8_e5m2":
        assert interpreted("rounding_cases.fp8_differences", dtype, ("61440.0", "1e30")) > 0


def test_special_values(interpreted):
    assert interpreted("rounding_cases.special_values") == []


MUTANTS = {
    "alpha": ("v5 = pointwise.rounded(v4 + 0.5 * in1", "v5 = pointwise.rounded(v4 + in1"),
    "rows and columns": ("operands.matrix(inputs[2], inputs[3], inputs[4]",
                         "operands.matrix(inputs[2], inputs[4], inputs[3]"),
    "another vector": ("v2 = v1 * in0", "v2 = v1 * (in0 + 0.01)"),
    "another gelu": ("(v2 + 0.044715 * v2 * v2 * v2)", "(v2 + 0.04 * v2 * v2 * v2)"),
    "a division too few": ("tl.div_rn(v5, in2)", "v5"),
}  # fmt: skip
"""Of the module of the chain "in float32 between"."""


@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_of_the_module_is_caught(interpreted, mutation):
    text = spec_of(MODELS["in float32 between"], "bfloat16")
    with wrong_values():
        interpreted("gemm_cases.run", text, 42, 48, 33, (16, 26), mutate=mutation)
