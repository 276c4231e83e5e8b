"""All configurations of tiles, dtypes, layouts and ragged sizes keep the budgets when built."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overlapc.codegen import GemmSpec
from overlapc.codegen.epilogue import Epilogue
from overlapc.codegen.function import function_of
from overlapc.codegen.pointwise import RULES
from overlapc.codegen.tiles import spec_for
from overlapc.errors import KernelError
from overlapc.planning.tiles import SPARING_SUMS, Tile, sums, tiles_for
from tests.codegen.epilogue_cases import MM, MODELS, SCALED, chain_of
from tests.codegen.machine_code import ARCHITECTURES, HARD, SLOW_PATH, WIDE, check, on_device

pytestmark = pytest.mark.usefixtures("triton_cache")


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", RULES)
def test_every_op_on_every_device_keeps_the_budgets(op: str, architecture: str):
    for dtype in ("bfloat16", "float32"):
        spec = on_device(chain_of(op, dtype), dtype, architecture)
        check(architecture, spec, SLOW_PATH.get(op, 0))
        check(architecture, replace(spec, order="packed"), SLOW_PATH.get(op, 0))


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
)
def test_every_dtype_and_layout_on_every_device(architecture: str, dtype: str):
    half = torch.empty(64, 128, device="meta", dtype=getattr(torch, dtype))
    operands = [half, torch.empty(128, 64, device="meta", dtype=half.dtype).t()]
    odd = torch.empty(64, 127, device="meta", dtype=half.dtype)
    if architecture == "sm_80" and half.element_size() == 1:
        with pytest.raises(KernelError, match="No GEMM is generated"):
            spec_for(half, half.t(), architecture=architecture)
        return
    for out in ("float32", "float16", "bfloat16"):
        for a in operands:
            for b in (operands[0].t(), operands[1].t()):
                check(architecture, spec_for(a, b, architecture=architecture, out=out))
        if half.element_size() > 1:  # torch multiplies no odd depths of float8
            spec = spec_for(odd, odd.t(), architecture=architecture, out=out)
            check(architecture, spec, ragged=("K", "stride_am", "stride_bn"))


CONFIGURED = [
    (architecture, dtype)
    for architecture in ARCHITECTURES
    for dtype in ("bfloat16", "float32", "float8_e4m3fn")
    if tiles_for(architecture, dtype)
]


def of_tile(architecture: str, dtype: str, tile: Tile, k: int, *, by_row: bool) -> GemmSpec:
    """The spec of a GEMM alone, with B as a weight or as itself; TMA reads no odd ``k``."""
    a = torch.empty(64, k, device="meta", dtype=getattr(torch, dtype))
    b = torch.empty((k, 64) if by_row else (64, k), device="meta", dtype=a.dtype)
    return spec_for(a, b if by_row else b.t(), architecture=architecture, out="bfloat16", tile=tile)


@pytest.mark.parametrize("tile", tiles_for("sm_90", "bfloat16"), ids=str)
def test_configurations_keep_the_budgets(tile: Tile):
    spec = of_tile("sm_90", "bfloat16", tile, 128, by_row=False)
    assert {name: getattr(spec, name) for name in tile.built} == tile.built
    check("sm_90", spec)


def test_a_wide_tile_of_float32_is_stored_where_its_operands_were():
    a = torch.empty(64, 128, device="meta", dtype=torch.bfloat16)
    spec = spec_for(a, a.t(), architecture="sm_90", out="float32")
    assert spec.tile == WIDE
    check("sm_90", spec)
    with pytest.raises(AssertionError):  # beside them it finds no room
        check("sm_90", replace(spec, flatten=True))


def test_the_widest_tile_is_kept_for_a_product_that_is_all_of_a_chain():
    wide = max(tiles_for("sm_80", "bfloat16"), key=lambda tile: tile.elements)
    spec = on_device(Epilogue((), (MM,)), "bfloat16", "sm_80", wide)
    assert spec.tile == wide
    check("sm_80", spec)
    # Addresses leave no registers to more than that.
    assert on_device(MODELS["residual"], "bfloat16", "sm_80", wide).tile != wide


ODD = ((136, 128), (128, 127), (130, 127))
"""n and k of which not both are multiples of 16."""


def check_ragged(
    architecture: str, tile: Tile, n: int, k: int, dtype: str, chain: Epilogue | None = None
) -> None:
    """Build as for a launch on a[m, k] and a weight[n, k], or on b[k, n], of sizes that Triton
    then knows not to be multiples of 16."""
    a = torch.empty(64, k, device="meta", dtype=getattr(torch, dtype))
    stored = function_of(chain, dtype).values[-1].dtype if chain else "bfloat16"
    lowered: Any = chain and SimpleNamespace(epilogue=chain, dtype=stored, fast=False)
    for by_row in (False, True):
        b = a.new_empty(k, n) if by_row else a.new_empty(n, k).t()
        sizes = {"N": n, "K": k, "stride_am": k} | (
            {"stride_bk": n} if by_row else {"stride_bn": k}
        )
        ragged = [name for name, size in sizes.items() if size % 16]
        out = None if chain else stored
        spec = spec_for(a, b, architecture=architecture, out=out, lowered=lowered, tile=tile)
        check(architecture, spec, ragged=ragged)


@pytest.mark.parametrize(("architecture", "sizes"), [("sm_90", ODD[0]), ("sm_100", ODD[2])])
def test_ragged_sizes_keep_the_budgets(architecture: str, sizes: tuple[int, int]):
    """Where no 16 bytes are stored, or loaded, at once, the widest tile spilled up to 2328 bytes.
    Mutant: `by_vectors` that is always so."""
    check_ragged(architecture, WIDE, *sizes, "bfloat16")


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "dtype"), [(name, of) for name, of in CONFIGURED if "float8" not in of]
)
def test_ragged_sizes_keep_the_budgets_everywhere(architecture: str, dtype: str):
    """Of float8 torch multiplies multiples of 16 alone."""
    for tile, sizes in itertools.product(tiles_for(architecture, dtype), ODD):
        check_ragged(architecture, tile, *sizes, dtype)
    for sizes in ODD if dtype == "bfloat16" else ():
        for name in ("residual", "gated"):
            check_ragged(
                architecture, tiles_for(architecture, dtype)[0], *sizes, dtype, MODELS[name]
            )


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "dtype"), CONFIGURED)
def test_every_configuration_keeps_the_budgets(architecture: str, dtype: str):
    for tile in tiles_for(architecture, dtype):
        # Torch multiplies no odd depths of float8.
        depths = (128, 112) if dtype.startswith("float8") else (128, 127)
        for k, by_row in itertools.product(depths, (False, True)):
            # What a launch on contiguous operands finds: an odd k is the stride of one or both.
            odd = ("K", "stride_am", *(() if by_row else ("stride_bn",))) if k % 2 else ()
            spec = of_tile(architecture, dtype, tile, k, by_row=by_row)
            check(architecture, spec, ragged=odd)
        chains = [chain_of(op, dtype) for op in RULES if op.split(".")[1] in HARD]
        for chain in [SCALED["with a bias"]] if dtype == "float8_e4m3fn" else chains:
            spec = on_device(chain, dtype, architecture, tile)
            assert spec.block_m == tile.block_m
            check(architecture, spec)


@pytest.mark.parametrize(("architecture", "dtype"), CONFIGURED)
def test_a_configuration_has_a_sparing_one_of_as_many_rows(architecture: str, dtype: str):
    known = tiles_for(architecture, dtype)
    assert 1 <= len(known) <= 4
    for tile in known:
        assert any(
            other.block_m == tile.block_m and sums(other, architecture) <= SPARING_SUMS
            for other in known
        )
