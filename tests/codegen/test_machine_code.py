"""Every variant built ahead of time: budgets, matrix instructions, and the order of signals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from overlapc.codegen import GemmSpec, builder
from overlapc.codegen.aot import VARYING, build_for
from overlapc.codegen.pointwise import RULES
from overlapc.codegen.spec import ORDERS
from overlapc.errors import KernelError
from overlapc.planning import tiles
from overlapc.planning.shared_memory import shared_bytes
from overlapc.planning.tiles import tiles_for
from tests.codegen.epilogue_cases import MODELS, SCALED, chain_of
from tests.codegen.machine_code import (
    ARCHITECTURES,
    BF16,
    CDNA,
    FLOAT,
    FP8,
    HARD,
    ROOMY,
    TMA,
    check,
    on_device,
    paired,
)
from tests.codegen.machine_loops import Loop, loops_of
from tests.codegen.machine_order import (
    amd_signal_faults,
    signal_order_faults,
)

pytestmark = pytest.mark.usefixtures("triton_cache")

SMALL = replace(BF16, **ROOMY.built, flatten=True)
TF32 = replace(FLOAT, block_m=128, block_n=128, precision="tf32", warps=8)
BLACKWELL = replace(TMA, **tiles_for("sm_120", "bfloat16")[0].built)
AMPERE = replace(BF16, **tiles_for("sm_80", "bfloat16")[0].built, flatten=True)


HOPPER = {
    "bfloat16": BF16,
    "bias": replace(BF16, bias=True),
    "row-major B": replace(BF16, b="row", even_k=True),
    "ragged k, row-major B": replace(SMALL, b="row"),
    "column-major A": replace(SMALL, a="col", b="row"),
    "strided": replace(SMALL, a="strided", b="strided"),
    "float32 out": replace(SMALL, out="float32"),
    "tf32": TF32,
}
DESCRIBED = {
    "bfloat16": TMA,
    "row-major B": replace(TMA, b="row"),
    "column-major A": replace(TMA, a="col", b="row"),
    "fast fp8": replace(FP8, precision="fast"),
    "fp8 out": replace(FP8, dtype="float8_e5m2", out="float8_e5m2"),
    "fp8, row-major B": replace(FP8, b="row"),
}
BY_POINTERS = {"sm_100": BF16, "sm_120": replace(BLACKWELL, loads="pointers")}
"""Operands that the TMA unit of these cannot read."""
PAIRED_DTYPES = ("bfloat16", "float32", "float16", "float8_e4m3fn")
PAIRED = {
    (architecture, dtype): (ORDERS[(i + j) % 2], (i + j // 2) % 2 == 0)
    for i, architecture in enumerate(ARCHITECTURES)
    for j, dtype in enumerate(PAIRED_DTYPES)
    if tiles_for(architecture, dtype)
}
"""Every architecture with every dtype, both orders, and with signals and without: each pair of
these occurs, and so do those of dtypes, orders and signals. Mutant: a larger tile of float32 for
sm_100 among the configurations."""


EVERYWHERE = {
    **{f"sm_90 {name}": ("sm_90", spec) for name, spec in HOPPER.items()},
    **{f"sm_90 TMA {name}": ("sm_90", spec) for name, spec in DESCRIBED.items()},
    **{f"{name} by pointers": (name, spec) for name, spec in BY_POINTERS.items()},
    **{
        f"{of[0]} {of[1]} {order}{' silent' * (not signals)}": (
            of[0],
            paired(*of, order, signals=signals),
        )
        for of, (order, signals) in PAIRED.items()
    },
}


@pytest.mark.parametrize(("architecture", "spec"), EVERYWHERE.values(), ids=EVERYWHERE.keys())
def test_budgets_and_order(architecture: str, spec: GemmSpec):
    check(architecture, spec)


def test_every_pair_of_an_architecture_a_dtype_an_order_and_signals_is_built():
    rows = [(*of, *how) for of, how in PAIRED.items()]
    values = ARCHITECTURES, PAIRED_DTYPES, ORDERS, (True, False)
    for (i, some), (j, others) in itertools.combinations(enumerate(values), 2):
        missing = set(itertools.product(some, others)) - {(row[i], row[j]) for row in rows}
        assert missing <= {("sm_80", FP8.dtype)}


PIPELINED = {"sm_90": (TMA, "HGMMA", "UTMALDG"), "sm_80": (AMPERE, "HMMA", "LDGSTS")}
"""A kernel, what multiplies in it, and what loads operands behind its back."""


@pytest.mark.parametrize("architecture", PIPELINED)
def test_operands_come_while_a_tile_is_stored(architecture: str):
    spec, multiplies, loads = PIPELINED[architecture]

    def main_loop(spec: GemmSpec) -> Loop:
        """The innermost that multiplies."""
        loops = loops_of(build_for(spec, architecture).cubin)
        products = [loop for loop in loops if loop.count(multiplies)]
        return min(products, key=lambda loop: len(loop.instructions))

    loop = main_loop(spec)
    assert loop.count(loads)
    assert loop.count("STG")
    apart = main_loop(replace(spec, flatten=False))
    assert apart.count(loads)
    assert not apart.count("STG")
    # A tile is announced while the next one is multiplied, and nothing waits for that.
    assert loop.count("REDG?")
    silent = main_loop(spec.without_signals())
    assert loop.count("WARPGROUP.DEPBAR") == silent.count("WARPGROUP.DEPBAR")
    # As deep a pipeline: Triton makes none where it meets what it does not move.
    held = spec.stages - (architecture == "sm_80")
    step = (spec.block_m + spec.block_n) * spec.block_k * 2
    assert build_for(spec, architecture).shared_bytes > held * step


@pytest.mark.parametrize("name", MODELS)
def test_chains_of_models_keep_the_budgets(name: str):
    spec = on_device(MODELS[name], "bfloat16", "sm_90")
    assert spec.loads == "descriptors"
    check("sm_90", spec)


@pytest.mark.parametrize(
    "architecture", ["sm_89", "sm_90", "gfx942", pytest.param("sm_120", marks=pytest.mark.long)]
)
def test_scales_keep_the_budgets(architecture: str):
    check(architecture, on_device(SCALED["with a bias"], "float8_e4m3fn", architecture))


@pytest.mark.parametrize("op", [op for op in RULES if op.split(".")[1] in HARD])
def test_hard_ops_keep_the_budgets(op: str):
    check("sm_90", on_device(chain_of(op, "bfloat16"), "bfloat16", "sm_90"))


@pytest.mark.parametrize(
    ("architecture", "op", "dtype"),
    [
        ("sm_100", "aten.log.default", "bfloat16"),
        ("sm_120", "aten.reciprocal.default", "float32"),
    ],
)
def test_ops_that_are_computed_apart_keep_the_budgets(architecture: str, op: str, dtype: str):
    """Mutant: no ``APART``."""
    check(architecture, on_device(chain_of(op, dtype), dtype, architecture))


def test_what_varies_from_launch_to_launch_is_no_part_of_a_build():
    """Mutant: a template that Triton compiles again for a sweep of 1, or of 16."""
    kernel = builder.build(BF16).module.KERNEL
    assert tuple(each.name for each in kernel.params if each.do_not_specialize) == VARYING


@pytest.mark.long
def test_a_widest_tile_with_a_hard_op_spills():
    chain = chain_of("aten.softplus.default", "bfloat16")
    with pytest.raises(AssertionError, match="spill"):
        check("sm_90", replace(TMA, epilogue=str(chain)))


def test_a_product_without_its_instruction_is_noticed():
    with pytest.raises(AssertionError):
        check("sm_90", replace(SMALL, block_m=16))  # fewer rows than wgmma has


def test_unaligned_operands_can_be_built():
    text = build_for(SMALL, "sm_90", aligned=False).assembly
    assert signal_order_faults(text, signals=True, late=True) == []


@pytest.mark.parametrize("architecture", tiles.CDNA)
def test_every_architecture_of_amd_that_is_served_has_its_units_and_its_release(architecture: str):
    """An older one's release writes nothing back, so it is not served."""
    binary = build_for(CDNA, architecture)
    assert binary.spilled_bytes == 0
    assert binary.shared_bytes <= shared_bytes(architecture)
    assert "v_mfma_f32" in binary.assembly
    assert amd_signal_faults(binary.assembly, signals=True) == []
    older = build_for(CDNA, "gfx90a").assembly
    assert amd_signal_faults(older, signals=True) == ["an add that is no release"]


@pytest.mark.parametrize("architecture", ["gfx1030", "gfx1100", "gfx1201", "gfx90a"])
@pytest.mark.parametrize("dtype", PAIRED_DTYPES)
def test_no_gemm_is_generated_for_other_units(architecture: str, dtype: str):
    """Mutant: whatever is called gfx has the tiles of gfx942."""
    with pytest.raises(KernelError, match=f"No GEMM is generated for {dtype} .* on {architecture}"):
        paired(architecture, dtype, "band", signals=True)
