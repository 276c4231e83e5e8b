"""Values and signals of generated GEMMs, in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen import GemmSpec

SPEC = GemmSpec("float32", "float32", 32, 32, 32, sweep=2)
HALF = replace(SPEC, dtype="float16", out="float16")
RAGGED = (150, 75, 50)
"""m, n, k: five tile rows, three tile columns, two steps, each with a remainder."""
THREE_BANDS = (32, 96, 22)

MUTANTS = {
    "wrong band": ("publish(counters, group,", "publish(counters, group * 0,"),
    "a band is one row off": (
        "group = tl.load(bands + tile // tiles_n)",
        "group = tl.load(bands + (tile + 1) % (tiles_m * tiles_n) // tiles_n)",
    ),
    "swapped tile map": ("return first_row + sweep * SWEEP + inside % height, inside // height",
                         "return first_row + sweep * SWEEP + inside // height, inside % height"),
    "uneven last sweep": ("tl.minimum(rows - sweep * SWEEP, SWEEP)", "SWEEP"),
    "no mask on the store": ("product.to(c.dtype.element_ty), mask=inside)",
                             "product.to(c.dtype.element_ty))"),
    "no mask along k": ("k_inside = k < K - start", "k_inside = k < K + BLOCK_K"),
    "no bump": ("publish(counters, group, COUNTER_STRIDE)", "pass"),
    "bump before the store": (
        "        inside = (m < M - row)[:, None]",
        "        publish(counters, group, COUNTER_STRIDE)\n"
        "        inside = (m < M - row)[:, None]",
    ),
    "a wrong counter stride": ("group, COUNTER_STRIDE)", "group, COUNTER_STRIDE // 2)"),
    "products kept in float16": ("product.to(c.dtype", "product.to(tl.float16).to(c.dtype"),
    "the first tile again": ("tl.range(tl.program_id(0), tiles_m", "tl.range(0, tiles_m"),
}  # fmt: skip


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=["float32", "float16"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("signals", [False, True], ids=["silent", "signals"])
def test_values_and_signals_of_ragged_sizes(interpreted, spec, bias, signals):
    spec = replace(spec, bias=bias, signals=signals)
    interpreted("gemm_cases.run", str(spec), *RAGGED, THREE_BANDS if signals else ())


@pytest.mark.parametrize("a", ["row", "col", "strided"])
@pytest.mark.parametrize("b", ["row", "col", "strided"])
def test_every_layout_of_the_operands(interpreted, a, b):
    interpreted("gemm_cases.run", str(replace(SPEC, a=a, b=b)), *RAGGED, THREE_BANDS, seed=1)


@pytest.mark.parametrize(
    "rows", [(150,), (32, 32, 32, 32, 22), (128, 22), (32, 118), (96, 32, 22)], ids=str
)
@pytest.mark.parametrize("ctas", [1, 4, 15, 64])
def test_every_partition_and_grid(interpreted, rows, ctas):
    interpreted("gemm_cases.run", str(SPEC), *RAGGED, rows, ctas=ctas, seed=ctas)


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (32, 32, 32), (33, 31, 0), (1, 200, 40), (100, 1, 64)], ids=str
)
def test_small_and_degenerate_sizes(interpreted, sizes):
    interpreted("gemm_cases.run", str(replace(SPEC, bias=True)), *sizes, seed=3)


@pytest.mark.parametrize("tile", [(16, 64, 16), (64, 16, 32), (128, 32, 64)], ids=str)
@pytest.mark.parametrize("sweep", [1, 3, 8])
def test_tiles_and_sweeps(interpreted, tile, sweep):
    block_m, block_n, block_k = tile
    spec = GemmSpec("float16", "float32", block_m, block_n, block_k, sweep=sweep, even_k=True)
    m = 4 * block_m + 3
    rows = (2 * block_m, m - 2 * block_m)
    interpreted("gemm_cases.run", str(spec), m, 3 * block_n - 1, 2 * block_k, rows)


def test_tiles_begin_in_the_order_of_their_bands(interpreted):
    order = interpreted("gemm_cases.tile_order", str(SPEC), 150, 75, THREE_BANDS)
    assert order == [0] * 3 + [1] * 9 + [2] * 3


@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_of_the_template_is_caught(interpreted, mutation):
    case = (str(replace(SPEC, bias=True)), *RAGGED, THREE_BANDS)
    interpreted("gemm_cases.run", *case)
    with pytest.raises(AssertionError):
        interpreted("gemm_cases.run", *case, mutate=mutation)
