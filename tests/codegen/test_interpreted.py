"""Values and signals of generated GEMMs, in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen import GemmSpec
from overlapc.planning.tiles import SWEEPS
from tests.codegen.catching import wrong_values

SPEC = GemmSpec("float32", "float32", 32, 32, 32)
HALF = replace(SPEC, dtype="float16", out="float16")
BRAIN = replace(SPEC, dtype="bfloat16", out="bfloat16")
FP8 = replace(SPEC, dtype="float8_e4m3fn", out="bfloat16")
TMA = replace(BRAIN, loads="descriptors", flatten=True)
LATE = replace(SPEC, flatten=True)
RAGGED = (150, 75, 50)
"""m, n, k: five tile rows, three tile columns, two steps, each with a remainder."""
ALIGNED = (152, 80, 48)
"""The same of what the TMA unit can take."""
SWEPT = (184, 80, 48)
"""With six tile rows, which packed order can sweep by two."""
THREE_BANDS = (32, 96, 22)
THREE_GROUPS = (4, 1, 13)
"""Of the eighteen tiles of ``SWEPT``."""

MUTANTS = {
    "wrong band": ("publish(counters, group,", "publish(counters, group * 0,"),
    "a band is one row off": (
        "tl.load(bands + 1 + tile // tiles_n)",
        "tl.load(bands + 1 + (tile + 1) % (tiles_m * tiles_n) // tiles_n)",
    ),
    "swapped tile map": ("return begun + inside % height, inside // height",
                         "return begun + inside // height, inside % height"),
    "uneven last sweep": ("tl.minimum(tall - begun, sweep)", "sweep"),
    "no mask on the store": ("tl.store(elements, result, mask=rows_inside[:, None] & "
                             "columns_inside[None, :])", "tl.store(elements, result)"),
    "no mask along k": ("k_inside = k < K - start", "k_inside = k < K + BLOCK_K"),
    "no bump": ("publish(counters, group, COUNTER_STRIDE, IS_AMD, FLATTEN)", "pass"),
    "bump before the store": (
        "        columns_inside = columns < N\n",
        "        columns_inside = columns < N\n"
        "        publish(counters, group, COUNTER_STRIDE, IS_AMD, FLATTEN)\n",
    ),
    "a wrong counter stride": ("group, COUNTER_STRIDE,", "group, COUNTER_STRIDE // 2,"),
    "a result kept in float16": ("tl.store(elements, result,",
                                 "tl.store(elements, result.to(tl.float16).to(tl.float32),"),
    "the first tile again": ("tl.range(tl.program_id(0), tiles", "tl.range(0, tiles"),
    "no bias": ("product + in0", "product"),
    "a bias of rows": (
        "x + tile[2].to(tl.int64) * stride_n, mask=tile[3], other=0.0)[None, :]",
        "x + tile[0].to(tl.int64) * stride_n, mask=tile[1], other=0.0)[:, None]",
    ),
    "the sum kept in bfloat16": ("        a += BLOCK_K * stride_ak",
                                 "        total = total.to(tl.bfloat16).to(tl.float32)\n"
                                 "        a += BLOCK_K * stride_ak"),
}  # fmt: skip
"""Of the template and of the module of a float32 GEMM with a bias."""

PLACED = {
    "rotated, stored in place": ("moved = tl.load(run + 4)", "moved = 0"),
    "the end of C ends every run": ("end = tl.load(run + 5)", "end = M"),
    "another run's rows": ("source = tl.load(run + 3)", "source = first * BLOCK_M"),
}
"""Seen only where bands do not lie as they are computed."""

PACKED = {
    "a sweep of its own": ("tiles_n, sweep)\n        row", "tiles_n, 1)\n        row"),
    "no group": ("group = tl.load(bands + tile)", "group = 0"),
    "overlapping tiles": ("(BLOCK_M * BLOCK_N)\n", "(BLOCK_M * BLOCK_N - BLOCK_N)\n"),
    "transposed tiles": ("(rows - row)[:, None] * BLOCK_N + (columns - column)[None, :]",
                         "(rows - row)[:, None] + (columns - column)[None, :] * BLOCK_M"),
}  # fmt: skip

ANNOUNCED_LATE = {
    "the last tile is not announced": ("announce(counters, stored, COUNTER_STRIDE)", "pass"),
    "the next tile's group": ("            stored = group +", "            stored = group + 1 +"),
    "announced in every step": ("(start == due) & (group >= 0)", "group >= 0"),
    "a product of few steps announces nothing": ("tl.cdiv(K, BLOCK_K) - 1)", "100)"),
    "announced before it is stored": ("    stored = -1  #", "    stored = 0  #"),
}
"""Seen where a tile is announced while the next one is computed."""

DESCRIBED = {
    "the next step's A": ("a.load([row, start])", "a.load([row, start + BLOCK_K])"),
    "rows for columns": ("b.load([column, start])", "b.load([row, start])"),
}


@pytest.mark.parametrize("spec", [SPEC, HALF, BRAIN], ids=lambda spec: spec.dtype)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("signals", [False, True], ids=["silent", "signals"])
def test_values_and_signals_of_ragged_sizes(interpreted, spec, bias, signals):
    spec = replace(spec, bias=bias, signals=signals)
    interpreted("gemm_cases.run", str(spec), *RAGGED, THREE_BANDS if signals else ())


DTYPES = ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_to_every_other(interpreted, dtype, out):
    spec = replace(SPEC, dtype=dtype, out=out)
    interpreted("gemm_cases.run", str(spec), *RAGGED, THREE_BANDS)


@pytest.mark.parametrize("a", ["row", "col", "strided"])
@pytest.mark.parametrize("b", ["row", "col", "strided"])
def test_every_layout_of_the_operands(interpreted, a, b):
    interpreted("gemm_cases.run", str(replace(SPEC, a=a, b=b)), *RAGGED, THREE_BANDS, seed=1)


@pytest.mark.parametrize("a", ["row", "col"])
@pytest.mark.parametrize("b", ["row", "col"])
@pytest.mark.parametrize("spec", [TMA, replace(FP8, loads="descriptors")], ids=lambda s: s.dtype)
def test_every_layout_by_descriptors(interpreted, spec, a, b):
    spec = replace(spec, a=a, b=b)
    interpreted("gemm_cases.run", str(spec), 160, *ALIGNED[1:], (32, 96, 32), seed=1)


@pytest.mark.parametrize(
    "rows", [(150,), (32, 32, 32, 32, 22), (128, 22), (32, 118), (96, 32, 22)], ids=str
)
@pytest.mark.parametrize("ctas", [1, 4, 64])
def test_every_partition_and_grid(interpreted, rows, ctas):
    spec = LATE if ctas < 64 else SPEC  # more than the 15 tiles are none
    interpreted("gemm_cases.run", str(spec), *RAGGED, rows, ctas=ctas, seed=ctas)


@pytest.mark.parametrize("by", [0, 1, 2])
@pytest.mark.parametrize("spec", [SPEC, TMA], ids=["pointers", "descriptors"])
def test_a_rotated_order_begins_elsewhere_and_stores_the_same(interpreted, spec, by):
    sizes = (RAGGED[0], *ALIGNED[1:])
    interpreted("gemm_cases.run", str(spec), *sizes, THREE_BANDS, placing=("rotated", by))
    order = interpreted(
        "gemm_cases.tile_order", str(spec), *sizes[:2], THREE_BANDS, placing=("rotated", by)
    )
    tiles = [[0] * 3, [1] * 9, [2] * 3]
    turned = tiles[by:] + tiles[:by]
    # Groups are numbered in the order in which they complete.
    assert order == [group for group, band in enumerate(turned) for _ in band]


@pytest.mark.parametrize(("rows", "ranks"), [((32, 16), 3), ((16, 8, 20), 2), ((40,), 4)], ids=str)
def test_a_staged_order_gives_each_band_rows_of_every_rank(interpreted, rows, ranks):
    m = ranks * sum(rows)
    interpreted("gemm_cases.run", str(SPEC), m, 75, 50, rows, placing=("staged", ranks))


@pytest.mark.parametrize("groups", [(18,), THREE_GROUPS, (1,) * 18], ids=str)
@pytest.mark.parametrize(
    ("spec", "sweep"), [(SPEC, 2), (TMA, 2), (HALF, 1), (replace(FP8, bias=True), 2), (BRAIN, 8)],
    ids=lambda it: str(getattr(it, "dtype", it)),
)  # fmt: skip
def test_packed_tiles_are_found_where_their_order_says(interpreted, spec, sweep, groups):
    spec = replace(spec, order="packed")
    interpreted("gemm_cases.run", str(spec), *SWEPT, groups, sweep=sweep, seed=5)


def test_packed_columns_may_be_ragged(interpreted):
    spec = replace(SPEC, order="packed")
    interpreted("gemm_cases.run", str(spec), SWEPT[0], *RAGGED[1:], THREE_GROUPS)


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (32, 32, 32), (33, 31, 0), (1, 200, 40), (100, 1, 64)], ids=str
)
def test_small_and_degenerate_sizes(interpreted, sizes):
    interpreted("gemm_cases.run", str(replace(SPEC, bias=True)), *sizes, seed=3)


@pytest.mark.parametrize(
    ("tile", "sweep"), [((16, 64, 16), 3), ((64, 16, 32), 1), ((128, 32, 64), 8)], ids=str
)
def test_tiles_of_any_shape(interpreted, tile, sweep):
    block_m, block_n, block_k = tile
    spec = GemmSpec("float16", "float32", block_m, block_n, block_k, even_k=True)
    m = 4 * block_m + 3
    rows = (2 * block_m, m - 2 * block_m)
    interpreted("gemm_cases.run", str(spec), m, 3 * block_n - 1, 2 * block_k, rows, sweep=sweep)


SMALL = GemmSpec("float32", "float32", 16, 16, 16)
IN_ORDER = {
    "band": (SMALL, (115, 39, 20), {"groups": (32, 64, 19)}),
    "rotated": (SMALL, (115, 39, 20), {"groups": (32, 64, 19), "placing": ("rotated", 1)}),
    "staged": (SMALL, (123, 39, 20), {"groups": (32, 9), "placing": ("staged", 3)}),
    "packed": (replace(SMALL, order="packed"), (123, 39, 20), {"groups": (4, 1, 19)}),
}
"""Eight tile rows or nine with ragged ends; those that are packed are whole sweeps."""


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("order", IN_ORDER)
def test_every_sweep_in_every_order(interpreted, order, sweep):
    spec, sizes, named = IN_ORDER[order]
    interpreted("gemm_cases.run", str(spec), *sizes, **named, sweep=sweep, seed=sweep)


def test_tiles_begin_in_the_order_of_their_bands(interpreted):
    order = interpreted("gemm_cases.tile_order", str(SPEC), 150, 75, THREE_BANDS)
    assert order == [0] * 3 + [1] * 9 + [2] * 3


CASES = {
    "plain": (replace(SPEC, bias=True), RAGGED, {"groups": THREE_BANDS}),
    "rotated": (SPEC, RAGGED, {"groups": THREE_BANDS, "placing": ("rotated", 1)}),
    "staged": (SPEC, (144, 75, 50), {"groups": (32, 16), "placing": ("staged", 3)}),
    "packed": (replace(SPEC, order="packed"), SWEPT, {"groups": THREE_GROUPS}),
    "described": (TMA, (152, 80, 96), {"groups": (32, 96, 24)}),
    "late": (LATE, RAGGED, {"groups": THREE_BANDS}),
}
MUTATIONS = [
    *[("plain", name, change) for name, change in MUTANTS.items()],
    *[("staged", name, change) for name, change in PLACED.items()],
    *[("packed", name, change) for name, change in PACKED.items()],
    *[("described", name, change) for name, change in DESCRIBED.items()],
    *[("late", name, change) for name, change in ANNOUNCED_LATE.items()],
]


@pytest.mark.parametrize("case", CASES)
def test_what_mutants_are_made_of_is_right(interpreted, case):
    spec, sizes, named = CASES[case]
    interpreted("gemm_cases.run", str(spec), *sizes, **named)


@pytest.mark.parametrize(
    ("case", "name", "mutation"), MUTATIONS, ids=[f"{case}: {name}" for case, name, _ in MUTATIONS]
)
def test_a_mutant_of_the_template_is_caught(interpreted, case, name, mutation):
    spec, sizes, named = CASES[case]
    with wrong_values():
        interpreted("gemm_cases.run", str(spec), *sizes, **named, mutate=mutation)
