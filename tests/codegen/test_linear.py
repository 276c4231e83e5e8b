"""Values of generated linear layers of few rows, in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.epilogue import Dtype, Epilogue, Input
from overlapc.codegen.linear.module import linear_module_text
from overlapc.codegen.linear.spec import LinearSpec
from overlapc.errors import KernelError
from tests.codegen.epilogue_cases import MM, MODELS, A, B, Ref, bfloat16, call, given, value

FLAT = LinearSpec("flat", "float16", "float16", 8, 32, 32)
GEMV = LinearSpec("gemv", "float16", "float16", 1, 16, 64)
BOTH = pytest.mark.parametrize("spec", [FLAT, GEMV], ids=["flat", "gemv"])
RAGGED = (37, 150)
"""n, k: remainders of both tiles."""
UP = Ref("gemm", 2)

GATED = Epilogue(
    (),
    (
        MM,
        call("aten.silu.default", value(0)),
        call("aten.mm.default", A, UP),
        call("aten.mul.Tensor", value(1), value(2)),
    ),
)
PRODUCT = Epilogue(
    (), (MM, call("aten.mm.default", A, UP), call("aten.mul.Tensor", value(0), value(1)))
)
EPILOGUES = {
    "bias": Epilogue((bfloat16("vector"),), (call("aten.addmm.default", given(0), A, B),)),
    "gelu": Epilogue((), (MM, call("aten.gelu.default", value(0)))),
    "gelu, tanh": Epilogue((), (MM, call("aten.gelu.default", value(0), approximate="tanh"))),
    "scale, cast": Epilogue(
        (Input("vector", "float32"),),
        (
            MM,
            call("prims.convert_element_type.default", given(0), Dtype("bfloat16")),
            call("aten.mul.Tensor", value(0), value(1)),
        ),
    ),
    "gate and up": GATED,
    "gate and up, biased": Epilogue(
        (bfloat16("vector"), bfloat16("vector")),
        (
            call("aten.addmm.default", given(0), A, B),
            call("aten.addmm.default", given(1), A, UP),
            call("aten.silu.default", value(0)),
            call("aten.mul.Tensor", value(2), value(1)),
        ),
    ),
    **{name: MODELS[name] for name in ("residual", "gated", "in float32 between")},
}


def with_epilogue(spec: LinearSpec, chain: Epilogue) -> LinearSpec:
    return replace(spec, dtype="bfloat16", out="bfloat16", epilogue=str(chain))


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_gemv_of_every_number_of_rows(interpreted, m, rows):
    if m <= rows:
        interpreted("linear_cases.run", str(replace(GEMV, rows=rows)), m, *RAGGED, seed=m)


@pytest.mark.parametrize("m", [1, 7, 8, 9, 16, 31, 33, 64])
def test_flat_of_every_number_of_rows(interpreted, m):
    rows = next(rows for rows in (8, 16, 32, 64) if rows >= m)
    interpreted("linear_cases.run", str(replace(FLAT, rows=rows)), m, *RAGGED, seed=m)


@BOTH
@pytest.mark.parametrize("weight", ["col", "row", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_layout_and_dtype(interpreted, spec, weight, dtype):
    spec = replace(spec, dtype=dtype, out=dtype, weight=weight)
    interpreted("linear_cases.run", str(spec), 1, *RAGGED)


@BOTH
@pytest.mark.parametrize("splits", [2, 8])
def test_a_split_k_is_added_in_a_fixed_order(interpreted, spec, splits):
    """Of eight parts the last ones have nothing to contract."""
    interpreted("linear_cases.run", str(replace(spec, splits=splits)), 1, *RAGGED, calls=3)


@BOTH
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(interpreted, spec, name):
    spec = with_epilogue(spec, EPILOGUES[name])
    interpreted("linear_cases.run", str(spec), 1, *RAGGED)


@BOTH
@pytest.mark.parametrize(
    ("dtype", "out", "splits"),
    [("bfloat16", "float32", 4), ("float16", "bfloat16", 1), ("float32", "float16", 1)],
)
def test_an_epilogue_may_end_in_another_dtype(interpreted, spec, dtype, out, splits):
    """After work in that dtype, whose roundings alone are explained where it is the wider one."""
    chain = Epilogue(
        (Input("vector", out),),
        (
            MM,
            call("prims.convert_element_type.default", value(0), Dtype(out)),
            call("aten.gelu.default", value(1)),
            call("aten.mul.Tensor", value(2), given(0)),
        ),
    )
    spec = replace(spec, dtype=dtype, out=out, epilogue=str(chain), splits=splits)
    interpreted("linear_cases.run", str(spec), 1, *RAGGED)


def test_another_dtype_than_the_epilogue_gives_is_no_kernel_s():
    chain = Epilogue((), (MM, call("aten.relu.default", value(0))))
    spec = replace(FLAT, dtype="bfloat16", out="float32", epilogue=str(chain))
    with pytest.raises(KernelError, match="float32"):
        linear_module_text(spec)


@BOTH
def test_a_pair_with_a_split_k(interpreted, spec):
    rows = {1: 2, 8: 8}[spec.rows]
    spec = replace(with_epilogue(spec, GATED), splits=4, rows=rows)
    interpreted("linear_cases.run", str(spec), 2, *RAGGED)


@BOTH
@pytest.mark.parametrize("held", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_weights_are_widened_as_they_are_loaded(interpreted, spec, held):
    scaled = Epilogue((bfloat16("vector"),), (MM, call("aten.mul.Tensor", value(0), given(0))))
    interpreted(
        "linear_cases.run", str(replace(with_epilogue(spec, scaled), held=held)), 1, *RAGGED
    )


@BOTH
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("name", ["", "bias"])
def test_three_results_of_one_launch(interpreted, spec, splits, name):
    """Of which each has columns, and so tiles, of its own."""
    spec = with_epilogue(spec, EPILOGUES[name]) if name else spec
    interpreted("linear_cases.run", str(replace(spec, results=3, splits=splits)), 1, *RAGGED)


@BOTH
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("gain", ["", "float32"])
def test_rows_are_normed_after_the_sum(interpreted, spec, splits, gain):
    rows = {1: 2, 8: 8}[spec.rows]
    spec = replace(with_epilogue(spec, PRODUCT), rows=rows, splits=splits)
    spec = replace(spec, norm=True, eps=0.001, gain=gain, shift=1.0 if gain else 0.0)
    interpreted("linear_cases.run", str(spec), 2, *RAGGED)


SCALES = [("float32", 0), ("bfloat16", 64), ("float32", 8), ("float32", 50), ("float32", 1)]
"""Dtype, and how many k share one: all, whole steps of either kernel, parts of a step, one."""


def scaled(spec: LinearSpec, held: str = "int8", **changes: object) -> LinearSpec:
    rows = {1: 2, 8: 8}[spec.rows]
    return replace(with_epilogue(spec, PRODUCT), held=held, rows=rows, splits=2, **changes)


@BOTH
@pytest.mark.parametrize(("scales", "group"), SCALES, ids=str)
def test_scales_are_multiplied_into_the_weight(interpreted, spec, scales, group):
    interpreted("linear_cases.run", str(scaled(spec, scales=scales, group=group)), 2, *RAGGED)


@BOTH
@pytest.mark.parametrize(
    ("held", "zeros", "group"),
    [("int8", "int8", 0), ("int8", "int8", 64), ("uint8", "uint8", 50), ("uint8", "bfloat16", 0),
     ("uint8", "bfloat16", 50), ("uint8", "float32", 64)],
)  # fmt: skip
def test_zero_points_are_subtracted_from_the_weight(interpreted, spec, held, zeros, group):
    spec = scaled(spec, held, scales="bfloat16", group=group, zeros=zeros)
    interpreted("linear_cases.run", str(spec), 2, *RAGGED)


@BOTH
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 64, 128), (1, 33, 0)], ids=str)
def test_degenerate_sizes(interpreted, spec, sizes):
    even = sizes[2] % spec.block_k == 0
    interpreted("linear_cases.run", str(replace(spec, even_k=even)), *sizes)


@BOTH
def test_no_rows_launch_nothing(interpreted, spec):
    interpreted("linear_cases.run", str(spec), 0, *RAGGED)


@pytest.mark.parametrize("spec", [replace(FLAT, splits=2), GEMV], ids=["flat", "gemv"])
def test_a_generated_module_checks_itself(interpreted, spec):
    assert interpreted("linear_cases.main_of", str(spec)) == 0


@pytest.mark.long
@pytest.mark.parametrize("weight", ["col", "row"])
@pytest.mark.parametrize("name", ["", *EPILOGUES])
def test_every_number_of_rows_with_every_epilogue(interpreted, weight, name):
    for m in range(1, 65):
        rows = next(rows for rows in (8, 16, 32, 64) if rows >= m)
        specs = [replace(FLAT, rows=rows)]
        if m <= 2:
            specs.append(replace(GEMV, rows=m))
        for spec in specs:
            spec = replace(spec, weight=weight, splits=1 + m % 2)
            spec = with_epilogue(spec, EPILOGUES[name]) if name else spec
            interpreted("linear_cases.run", str(spec), m, *RAGGED, seed=m)


FLAT_MUTANTS = {
    "no mask along k": ("k_inside = k < end - start", "k_inside = k < end - start + BLOCK_K"),
    "the other weight twice": ("o = corner(other,", "o = corner(weight,"),
    "rows and columns": ("tl.trans(first), tl.trans(second)",
                         "tl.reshape(first, (ROWS, BLOCK_N)), tl.reshape(second, (ROWS, BLOCK_N))"),
    "no step along k of x": ("        x += BLOCK_K * stride_xk\n", ""),
    "parts overlap": ("begin + steps * BLOCK_K, K)", "begin + steps * BLOCK_K + 1, K)"),
    "every part begins at zero": ("begin = split * steps * BLOCK_K", "begin = split * 0"),
    "the last but one adds": ("if before == SPLITS - 1:", "if before == SPLITS - 2:"),
    "the counter is left": ("tl.store(arrivals + tile, 0)", "pass"),
    "one part is left out": ("tl.static_range(SPLITS)", "tl.static_range(SPLITS - 1)"),
    "parts of another tile": ("tile.to(tl.int64) * (SPLITS * EACH)", "tile.to(tl.int64) * EACH"),
    "the sum depends on the order": (
        "total += tl.load(slots + split * EACH + places",
        "total += tl.load(slots + (split + tl.program_id(1)) % SPLITS * EACH + places",
    ),
    "stores beside C": ("mask=rows_inside[:, None] & columns_inside[None, :])",
                        "mask=columns_inside[None, :])"),
    "gate for up": ("v0 * tl.sigmoid(v0)", "v0"),
}  # fmt: skip
"""Of a split pair."""
GEMV_MUTANTS = {
    "the first row twice": ("factors(x + stride_xm + k", "factors(x + k"),
    "no mask along k": ("k_inside = k < end - start", "k_inside = k < end - start + BLOCK_K"),
    "no step of the weight": ("        w += BLOCK_K * weight[1]\n", ""),
    "the second weight is the first": ("x, other, gain, rows_left", "x, weight, gain, rows_left"),
}
SEVERAL_MUTANTS = {
    "one weight of all results": ("x, weights[at], weights[at]", "x, weights[0], weights[0]"),
    "results apart": (
        "before += tl.cdiv(sizes[at], BLOCK_N)",
        "before += 2 + sizes[at] // BLOCK_N",
    ),
    "another's input": ("outs[at], inputs[at]", "outs[at], inputs[0]"),
}
SCALED_MUTANTS = {
    "the first group's scales": ("(start // GROUP)", "(start * 0)"),
    "scales of the first columns": (
        "columns = (column + tl.arange(0, BLOCK_N))",
        "columns = tl.arange(0, BLOCK_N)",
    ),
    "not scaled": ("result.to(tl.float32) * of_groups(", "result.to(tl.float32) + 0 * of_groups("),
    "zero points twice": ("- of_groups(", "- 2 * of_groups("),
    "scales as zero points": ("weight[6], weight[7]", "weight[3], weight[7]"),
}
NORM_MUTANTS = {
    "no mean": ("squares / K + EPS", "squares + EPS"),
    "nothing added": ("squares / K + EPS", "squares / K"),
    "the first gains": ("gain + start + k", "gain + k"),
    "nothing added to the gain": ("gains += SHIFT", "gains += 0"),
    "squares of gained rows": ("squares += wide * wide", "squares += wide"),
}
PAIR = replace(with_epilogue(FLAT, GATED), splits=4, dtype="float32", out="float32")
SEVERAL = replace(with_epilogue(FLAT, EPILOGUES["bias"]), results=3)
NORMED = replace(FLAT, norm=True, eps=0.5, gain="float16", shift=1.0)
SCALED = replace(FLAT, held="int8", scales="float32", group=64, zeros="int8")
TWO = replace(with_epilogue(GEMV, GATED), rows=2, dtype="float32", out="float32")


@pytest.mark.parametrize(
    ("spec", "mutation"),
    [
        *((PAIR, one) for one in FLAT_MUTANTS.values()),
        *((SEVERAL, one) for one in SEVERAL_MUTANTS.values()),
        *((SCALED, one) for one in SCALED_MUTANTS.values()),
        *((NORMED, one) for one in NORM_MUTANTS.values()),
        *((TWO, one) for one in GEMV_MUTANTS.values()),
    ],
    ids=[
        *FLAT_MUTANTS,
        *SEVERAL_MUTANTS,
        *SCALED_MUTANTS,
        *NORM_MUTANTS,
        *(f"gemv: {name}" for name in GEMV_MUTANTS),
    ],
)
def test_a_mutant_is_caught(interpreted, spec, mutation):
    m = spec.rows - (spec.way == "flat")
    compared = "roundings explain|never written|fell outside|order of programs"
    with pytest.raises(AssertionError, match=compared):
        interpreted("linear_cases.run", str(spec), m, 37, 300, mutate=mutation)


def test_what_mutants_are_made_of_is_right(interpreted):
    for spec in (PAIR, TWO, SEVERAL, SCALED, NORMED):
        interpreted("linear_cases.run", str(spec), spec.rows, 37, 300)


@pytest.mark.parametrize("spec", [PAIR, FLAT, GEMV], ids=str)
def test_a_text_is_read_back(spec):
    assert LinearSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"way": "fast"},
        {"rows": 1},
        {"rows": 12},
        {"dtype": "int8"},
        {"held": "float64"},
        {"held": "float16"},
        {"block_n": 48},
        {"block_k": 8},
        {"splits": 3},
        {"stages": 0},
        {"weight": "diagonal"},
        {"results": 4},
        {"scales": "int8"},
        {"group": 8},
        {"zeros": "int8"},
        {"zeros": "float32", "scales": "float32", "held": "float8_e4m3fn"},
        {"zeros": "int8", "scales": "float32", "held": "uint8"},
        {"eps": 0.5},
        {"shift": 1.0},
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_generated_is_refused(change):
    with pytest.raises(KernelError, match="No linear layer can be generated"):
        replace(FLAT, **change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": 9}, "at most 8"),
        ({"transposed": True}, "not the layout"),
        ({"dtype": "float32"}, "dtypes"),
        ({"k": 33}, "not a multiple"),
        ({"parts": 5}, "parts are not"),
        ({"arrivals": 0}, "arrivals are not"),
        ({"strided": True}, "not a contiguous"),
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_is_refused(interpreted, change, says):
    spec = replace(FLAT, splits=2, even_k=True)
    with pytest.raises(AssertionError, match=says):
        interpreted("linear_cases.misfit", str(spec), change)


@pytest.mark.parametrize("pair", [False, True], ids=["", "pair"])
@pytest.mark.parametrize(("rows", "way"), [(0, "library"), (1, "gemv"), (2, "gemv"), (3, "flat"),
                                           (64, "flat"), (65, "library")])  # fmt: skip
def test_the_op_runs_a_kernel_of_the_whole_layer(interpreted, rows, way, pair):
    layout = "row" if rows % 2 else "col"
    error, calls, by_library = interpreted("linear_cases.op", rows, pair, layout)
    assert error < 0.1
    assert (calls, by_library) == ({way: 1}, {})


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("is_turned", [False, True], ids=["cast", "turned"])
def test_the_op_of_one_spec_takes_other_sizes_too(interpreted, rows, is_turned):
    """Of which k is even or not, and columns few enough to split k or not."""
    sizes = [(75, 2100), (40, 2048), (75, 2100)]
    assert max(interpreted("linear_cases.op_of_int8", rows, is_turned, sizes)) < 0.05


@pytest.mark.parametrize(("rows", "way"), [(1, "gemv"), (8, "flat")])
@pytest.mark.parametrize("spelled", ["zeros", "floating zeros", "repeated"])
def test_the_op_reads_groups_as_torchao_spells_them(interpreted, rows, way, spelled):
    """The mutant that ignores zero points, or repeats scales the other way, is off by far more."""
    error, calls = interpreted("linear_cases.op_of_scaled", rows, spelled)
    assert calls == {way: 1}
    assert 0 < error < 0.01


@pytest.mark.parametrize(("rows", "way", "shift"), [(2, "gemv", 0.0), (16, "flat", 1.0)])
def test_a_norm_after_the_sum_rounds_no_more_than_eager_does(interpreted, rows, way, shift):
    """Root mean squares over float64: the mutant that leaves out the gain is off by far more."""
    ours, eagers, calls = interpreted("linear_cases.op_of_normed_rows", rows, shift)
    assert calls == {way: 1}
    assert 0 < ours < 1.2 * eagers
