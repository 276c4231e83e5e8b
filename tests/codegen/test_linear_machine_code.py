"""Kernels of linear layers built ahead of time: budgets, bytes in flight, instructions."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from overlapc.codegen.aot import Binary, compile_kernel
from overlapc.codegen.epilogue import Epilogue
from overlapc.codegen.function import function_of
from overlapc.codegen.linear.aot import build_linear_for
from overlapc.codegen.linear.choice import linear_spec_for
from overlapc.codegen.linear.spec import LinearSpec
from overlapc.codegen.lowering import Lowered
from overlapc.errors import KernelError
from overlapc.planning.linear.tiles import DTYPES, FLAT, GEMV, TILE_ROWS
from tests.codegen.epilogue_cases import MM, MODELS
from tests.codegen.machine_code import ARCHITECTURES, SHARED_BYTES
from tests.codegen.machine_order import arrival_faults, arrival_mutants
from tests.codegen.test_linear import EPILOGUES, GATED
from tests.codegen.unswapped import unswapped

PLAIN = Epilogue((), (MM,))
SMS = {"sm_80": 108, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170, "gfx942": 304}
MOST_REGISTERS = {"gfx942": 512}
IN_FLIGHT_BYTES = 24 * 1024
"""Of each multiprocessor of sm_90: 4.8 TB/s times 0.65 us, over 132 of them."""


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("modules")))
        yield


def chosen(
    way: str, rows: int, architecture: str, chain: Epilogue = PLAIN, *,
    dtype: str = "bfloat16", layout: str = "col", n: int = 4096, k: int = 4096, held: str = "",
) -> LinearSpec:  # fmt: skip
    """The spec that such a layer would get there."""
    kind = getattr(torch, dtype)
    x = torch.empty(rows, k, device="meta", dtype=kind)
    kind = getattr(torch, held or dtype)
    w = torch.empty(n, k, device="meta", dtype=kind).t()
    w = torch.empty(k, n, device="meta", dtype=kind) if layout == "row" else w
    function = function_of(chain, dtype, 2)
    others = tuple(range(2, 1 + function.products))
    lowered = Lowered(chain, function.values[-1].dtype, 0, 1, (), (), "", others=others)
    weights = [w] * function.products
    return linear_spec_for(
        way, rows, x, weights, lowered, architecture=architecture, sms=SMS[architecture]
    )


def check(architecture: str, spec: LinearSpec) -> str:
    """Return the assembly of a kernel that keeps its budgets; AssertionError otherwise."""
    binary = build_linear_for(spec, architecture)
    assert binary.spilled_bytes == 0, f"{binary.registers} registers and a spill"
    assert binary.shared_bytes <= SHARED_BYTES[architecture]
    assert binary.registers <= MOST_REGISTERS.get(architecture, 255)
    if architecture.startswith("sm_"):
        assert "cp.async" in binary.assembly, "nothing is loaded ahead"
        assert binary.shared_bytes >= spec.bytes_in_flight, "fewer stages than were asked for"
    if architecture == "sm_90":
        assert spec.bytes_in_flight * resident(spec, binary) >= IN_FLIGHT_BYTES
    if spec.way == FLAT:
        assert matrix_instructions(architecture, binary.assembly)
    if spec.splits > 1:
        assert arrival_faults(binary.assembly, spec.results) == []
    return binary.assembly


def resident(spec: LinearSpec, binary: Binary, n: int = 4096) -> int:
    """CTAs that stand on one multiprocessor of sm_90 at a time, of a layer of n columns."""
    by_grid = -(-n // spec.block_n) * spec.splits // SMS["sm_90"]
    by_registers = (1 << 16) // (binary.registers * 32 * spec.warps)
    return min(by_grid, by_registers, SHARED_BYTES["sm_90"] // binary.shared_bytes)


def matrix_instructions(architecture: str, assembly: str) -> int:
    """How many stand in the loop: none means a product on the ordinary cores."""
    name = {"gfx942": "v_mfma_f32"}.get(
        architecture, r"(?<!//)\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)"
    )
    return len(re.findall(name, assembly))


FEW = [
    (FLAT, 8, "sm_90", PLAIN),
    (FLAT, 64, "sm_90", GATED),
    (FLAT, 8, "sm_80", PLAIN),
    (GEMV, 1, "sm_90", PLAIN),
    (GEMV, 2, "sm_90", GATED),
    (FLAT, 16, "gfx942", PLAIN),
    (FLAT, 64, "sm_120", GATED),
]


@pytest.mark.parametrize(("way", "rows", "architecture", "chain"), FEW, ids=lambda x: str(x)[:9])
def test_budgets(way, rows, architecture, chain):
    check(architecture, chosen(way, rows, architecture, chain))


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", ["col", "row"])
@pytest.mark.parametrize("way", [FLAT, GEMV])
@pytest.mark.parametrize("name", ["", "residual", "bias", "gelu", "gate and up, biased"])
def test_every_tile_on_every_device_keeps_the_budgets(architecture, layout, way, name):
    chain = {**EPILOGUES, **MODELS}.get(name, PLAIN)
    for rows in TILE_ROWS[way]:
        for dtype in ("bfloat16",) if name else DTYPES[way]:
            for k in (4096, 4100):
                spec = chosen(way, rows, architecture, chain, dtype=dtype, layout=layout, k=k)
                check(architecture, spec)


NARROW = [
    *(("sm_80", "int8"), ("sm_90", "int8"), ("sm_89", "float8_e4m3fn"), ("sm_90", "float8_e4m3fn")),
    *(("sm_90", "float8_e5m2"), ("sm_100", "int8"), ("gfx942", "int8")),
    *(("sm_120", "int8"), ("sm_120", "float8_e4m3fn")),
]


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "held"), NARROW)
def test_narrow_weights_keep_the_budgets(architecture, held):
    for way in (FLAT, GEMV):
        for rows in TILE_ROWS[way]:
            check(architecture, chosen(way, rows, architecture, held=held))


BESIDE = [
    (FLAT, 8, "sm_90", {"results": 3}),
    (FLAT, 64, "sm_90", {"held": "int8", "scales": "bfloat16", "group": 32, "zeros": "int8"}),
    *(
        pytest.param(way, rows, architecture, change, marks=pytest.mark.long)
        for architecture in ARCHITECTURES
        for way in (FLAT, GEMV)
        for rows in TILE_ROWS[way]
        for change in (
            {"results": 3},
            {"held": "int8", "scales": "float32"},
            {"held": "int8", "scales": "bfloat16", "group": 32},
            {"held": "int8", "scales": "bfloat16", "group": 128},
            {"held": "int8", "scales": "bfloat16", "group": 32, "zeros": "int8"},
            {"held": "int8", "scales": "bfloat16", "zeros": "int8"},
            {"held": "uint8", "scales": "bfloat16", "group": 64, "zeros": "bfloat16"},
            {"norm": True, "eps": 1e-5, "gain": "bfloat16"},
            {"norm": True, "eps": 1e-5, "gain": "bfloat16", "results": 3},
        )
    ),
]


@pytest.mark.parametrize(("way", "rows", "architecture", "change"), BESIDE, ids=str)
def test_several_results_and_scales_keep_the_budgets(way, rows, architecture, change):
    spec = chosen(way, rows, architecture, held=change.get("held", ""))
    check(architecture, replace(spec, **change))


def test_columns_that_are_few_split_k():
    assert chosen(FLAT, 8, "sm_90").splits == 4
    assert chosen(FLAT, 8, "sm_90", n=128256).splits == 1


def test_half_the_matrix_instructions_of_rows_as_m():
    """8 rows are 8 of the 16 that a matrix instruction has at least of its M."""
    spec = replace(chosen(FLAT, 8, "sm_90", n=1 << 16), splits=1, even_k=True)
    swapped = matrix_instructions("sm_90", build_linear_for(spec, "sm_90").assembly)
    fixed = {"ROWS": 8, "BLOCK_N": spec.block_n, "BLOCK_K": spec.block_k}
    types = {"x": "*bf16", "w": "*bf16", "c": "*bf16", "K": "i32"}
    plain = compile_kernel(
        unswapped, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed,
        {(at,): [["tt.divisibility", 16]] for at in range(len(types))}, "sm_90",
        {"num_warps": spec.warps, "num_stages": spec.stages},
    )  # fmt: skip
    assert swapped > 0
    assert matrix_instructions("sm_90", plain.assembly) == 2 * swapped


def test_parts_that_are_read_too_early_are_caught():
    for architecture in ("sm_90", "gfx942"):
        spec = chosen(FLAT, 16, architecture)
        assert spec.splits > 1
        for name, mutant in arrival_mutants(check(architecture, spec)).items():
            assert arrival_faults(mutant), f"{name} on {architecture}"


def test_what_is_not_generated_is_said():
    with pytest.raises(KernelError, match="float32"):
        chosen(FLAT, 8, "sm_90", dtype="float32")
    with pytest.raises(KernelError, match="float8_e4m3fn on sm_80"):
        chosen(FLAT, 8, "sm_80", held="float8_e4m3fn")
    with pytest.raises(KernelError, match="65 rows"):
        chosen(FLAT, 65, "sm_90")
