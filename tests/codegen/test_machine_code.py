"""Every variant built ahead of time: budgets, matrix instructions, and the order of signals."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overlapc.codegen import GemmSpec, builder
from overlapc.codegen.aot import VARYING, Binary, build_for, compile_kernel
from overlapc.codegen.epilogue import Epilogue
from overlapc.codegen.function import function_of
from overlapc.codegen.pointwise import RULES
from overlapc.codegen.spec import ORDERS
from overlapc.codegen.templates import signal
from overlapc.codegen.tiles import spec_for
from overlapc.errors import KernelError
from overlapc.planning import tiles
from overlapc.planning.shared_memory import shared_bytes
from overlapc.planning.tiles import SPARING_SUMS, Tile, sums, tiles_for
from tests.codegen.epilogue_cases import MM, MODELS, SCALED, chain_of
from tests.codegen.machine_loops import Loop, loops_of
from tests.codegen.machine_order import (
    AMD_ADD,
    BARRIER,
    RELEASE,
    STORE,
    amd_mutants,
    amd_signal_faults,
    last_line,
    lines_of,
    signal_order_faults,
)

WIDE, ROOMY = tiles_for("sm_90", "bfloat16")[:2]
TMA = GemmSpec("bfloat16", "bfloat16", **WIDE.built, loads="descriptors", flatten=True)
BF16 = replace(TMA, loads="pointers", stages=3, flatten=False)
SMALL = replace(BF16, **ROOMY.built, flatten=True)
FLOAT = GemmSpec("float32", "float32", **tiles_for("sm_80", "float32")[0].built, flatten=True)
TF32 = replace(FLOAT, block_m=128, block_n=128, precision="tf32", warps=8)
BLACKWELL = replace(TMA, **tiles_for("sm_120", "bfloat16")[0].built)
AMPERE = replace(BF16, **tiles_for("sm_80", "bfloat16")[0].built, flatten=True)
CDNA = replace(BF16, **tiles_for("gfx942", "bfloat16")[0].built)
FP8 = replace(TMA, dtype="float8_e4m3fn", **tiles_for("sm_90", "float8_e4m3fn")[0].built)

SHARED_BYTES = {
    "sm_80": 163 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
"""Shared memory that one CTA may have, from the vendors' programming guides."""
ARCHITECTURES = tuple(SHARED_BYTES)
SLOW_PATH = {"aten.sin.default": 128, "aten.cos.default": 128}
"""Bytes of stack that the reduction of huge arguments takes: no spill."""

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


def paired(architecture: str, dtype: str, order: str, *, signals: bool) -> GemmSpec:
    """The GEMM alone, as it would be chosen there."""
    a = torch.empty(64, 128, device="meta", dtype=getattr(torch, dtype))
    out = "bfloat16" if dtype == FP8.dtype else dtype
    spec = spec_for(a, a.t(), architecture=architecture, out=out, signals=signals)
    return replace(spec, order=order)


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


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.mark.parametrize(("architecture", "spec"), EVERYWHERE.values(), ids=EVERYWHERE.keys())
def test_budgets_and_order(architecture: str, spec: GemmSpec):
    check(architecture, spec)


def test_every_pair_of_an_architecture_a_dtype_an_order_and_signals_is_built():
    rows = [(*of, *how) for of, how in PAIRED.items()]
    values = ARCHITECTURES, PAIRED_DTYPES, ORDERS, (True, False)
    for (i, some), (j, others) in itertools.combinations(enumerate(values), 2):
        missing = set(itertools.product(some, others)) - {(row[i], row[j]) for row in rows}
        assert missing <= {("sm_80", FP8.dtype)}


def check(
    architecture: str, spec: GemmSpec, stack: int = 0, *, ragged: Collection[str] = ()
) -> None:
    """Raise AssertionError unless the machine code keeps its budgets, and the order of signals.

    Elements of two bytes that are loaded alone are less than an asynchronous copy moves.
    """
    binary = build_for(spec, architecture, ragged=ragged)
    assert binary.spilled_bytes <= stack, f"{binary.registers} registers and a spill"
    assert binary.shared_bytes <= SHARED_BYTES[architecture]
    assert 32 < binary.registers <= (512 if architecture.startswith("gfx") else 255)
    assert matrix_instruction(architecture, spec) in binary.assembly
    loads = loading_instruction(architecture, spec)
    scattered = spec.loads == "pointers" and bool({*ragged} - {"N"}) and spec.dtype != "float32"
    assert scattered or loads in binary.assembly, f"operands are not loaded by {loads}"
    if architecture.startswith("sm_"):
        # Matrix units that work on by themselves are a step behind operands that are.
        ends = 2 if "tcgen05.mma" in binary.assembly and not scattered else 1
        faults = signal_order_faults(binary.assembly, spec.signals, late=spec.flatten, ends=ends)
        assert faults == []
    else:
        assert amd_signal_faults(binary.assembly, spec.signals) == []


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


def matrix_instruction(architecture: str, spec: GemmSpec) -> str:
    """What the product must be made of: losing it costs a factor, silently."""
    if spec.dtype == "float32" and spec.precision == "ieee":
        return "v_mfma_f32" if architecture.startswith("gfx") else "fma.rn.f32"
    return {
        "sm_80": "mma.sync",
        "sm_89": "mma.sync",
        "sm_90": "wgmma.mma_async",
        "sm_100": "tcgen05.mma",
        "sm_120": "mma.sync",
        "gfx942": "v_mfma_f32",
    }[architecture]


def loading_instruction(architecture: str, spec: GemmSpec) -> str:
    """How operands must reach shared memory, where the hardware has a way beside registers."""
    if architecture.startswith("gfx") or "strided" in (spec.a, spec.b):
        return ""
    if spec.loads == "descriptors":
        return "cp.async.bulk.tensor"
    return "cp.async.c"


def on_device(chain: Epilogue, dtype: str, architecture: str, tile: Tile | None = None) -> GemmSpec:
    """The spec that a chain would get there."""
    a = torch.empty(64, 128, device="meta", dtype=getattr(torch, dtype))
    b = torch.empty(64, 128, device="meta", dtype=a.dtype).t()
    out = function_of(chain, dtype).values[-1].dtype
    lowered: Any = SimpleNamespace(epilogue=chain, dtype=out, fast=False)
    return spec_for(a, b, architecture=architecture, lowered=lowered, tile=tile)


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


HARD = ("gelu", "mish", "softplus", "atan2", "log1p")


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


def test_what_varies_from_launch_to_launch_is_no_part_of_a_build():
    """Mutant: a template that Triton compiles again for a sweep of 1, or of 16."""
    kernel = builder.build(BF16).module.KERNEL
    assert tuple(each.name for each in kernel.params if each.do_not_specialize) == VARYING


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


def test_a_wrong_order_is_caught_on_amd():
    text = build_for(CDNA, "gfx942").assembly
    assert amd_signal_faults(text, signals=True) == []
    assert amd_signal_faults(text, signals=False)
    (add,) = lines_of(AMD_ADD, text.splitlines())
    for name, mutant in amd_mutants(text.splitlines(), add).items():
        assert amd_signal_faults("\n".join(mutant), signals=True), name


@pytest.fixture(scope="module")
def ptx() -> str:
    text = build_for(replace(FLOAT, flatten=False), "sm_90").assembly
    assert signal_order_faults(text, signals=True) == []
    return text


TMA_STORE = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1, %r2}], [%r3];"
TMA_STORES = {
    "TMA store first": [TMA_STORE],
    "TMA store first, its reads awaited": [
        TMA_STORE,
        "cp.async.bulk.commit_group;",
        "cp.async.bulk.wait_group.read 0;",
    ],
    "TMA sum first": [TMA_STORE.replace("cp.async", "cp.reduce.async")],
}
"""In front of the last ordinary store, so with a barrier and a release behind."""


@pytest.mark.parametrize(
    "mutation",
    ["no barrier", "some threads", "store last", "TMA store last", *TMA_STORES, "relaxed", "twice",
     "silent"],
)  # fmt: skip
def test_a_wrong_order_is_caught(ptx: str, mutation: str):
    lines = ptx.splitlines()
    (release,) = lines_of(RELEASE, lines)
    store = last_line(STORE, lines, release)
    match mutation:
        case "no barrier":
            lines[store:release] = [
                line for line in lines[store:release] if not BARRIER.search(line)
            ]
        case "some threads":
            (barrier,) = lines_of(BARRIER, lines[store:release])
            lines[store + barrier] = "\tbarrier.sync 1, 64;"
        case "store last":
            lines.insert(release + 1, lines[store])
        case "TMA store last":
            lines.insert(release + 1, TMA_STORE)
        case "relaxed":
            lines[release] = lines[release].replace("release", "relaxed")
        case "twice":
            lines.insert(release, lines[release])
        case _:
            lines[store:store] = TMA_STORES.get(mutation, [])
    assert signal_order_faults("\n".join(lines), signals=mutation != "silent")


@pytest.mark.parametrize(
    "mutation",
    ["no barrier", "store last", "TMA store last", *TMA_STORES, "relaxed", "early", "last tile",
     "all behind", "all among"],
)  # fmt: skip
def test_a_wrong_order_of_late_signals_is_caught(mutation: str):
    lines = build_for(FLOAT, "sm_90").assembly.splitlines()
    assert signal_order_faults("\n".join(lines), signals=True, late=True) == []
    releases = lines_of(RELEASE, lines)
    store = max(lines_of(STORE, lines))
    barrier = store + min(lines_of(BARRIER, lines[store:]))
    match mutation:
        case "no barrier":
            end = next(at for at in range(store, len(lines)) if lines[at].startswith("$L__BB"))
            lines[store:end] = [line for line in lines[store:end] if not BARRIER.search(line)]
        case "store last":
            lines.insert(barrier + 1, lines[store])
        case "TMA store last":
            lines.insert(barrier + 1, TMA_STORE)
        case "relaxed":
            for at in releases:
                lines[at] = lines[at].replace("release", "relaxed")
        case "early":
            lines.insert(barrier, lines[releases[0]])
        case "last tile":
            del lines[releases[-1]]
        case "all behind":
            lines.insert(releases[1], lines.pop(releases[0]))
        case "all among":
            lines.insert(releases[0], lines.pop(releases[1]))
        case _:
            lines[store:store] = TMA_STORES[mutation]
    assert signal_order_faults("\n".join(lines), signals=True, late=True)


def test_every_release_of_a_pipeline_that_ends_apart_is_needed():
    """Mutant: one behind the loop, or two."""
    spec = paired("sm_100", "bfloat16", "band", signals=True)
    lines = build_for(spec, "sm_100").assembly.splitlines()
    releases = lines_of(RELEASE, lines)
    assert len(releases) == 3
    for at in releases:
        without = [line for i, line in enumerate(lines) if i != at]
        assert signal_order_faults("\n".join(without), signals=True, late=True, ends=2)


def test_a_template_without_a_barrier_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = inspect.getsource(signal)
    assert source.count("    cta_barrier(FLATTEN)\n") == 1
    path = tmp_path / "signal_without_barrier.py"
    path.write_text(source.replace("    cta_barrier(FLATTEN)\n", ""))
    # The template finds its signal among its globals.
    kernel = builder.build(FLOAT).module.KERNEL
    text = (Path(kernel.fn.__code__.co_filename)).read_text()
    (tmp_path / "gemm.py").write_text(text)
    module = builder.load(tmp_path / "gemm.py")
    module.__dict__["await_stores"] = builder.load(path).await_stores
    monkeypatch.setattr(builder.build(FLOAT).module, "KERNEL", module.band_gemm)
    faults = signal_order_faults(build_for(FLOAT, "sm_90").assembly, signals=True, late=True)
    assert faults == ["no CTA barrier behind the last store"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120", "gfx942"])
def test_the_waiter_reads_again_and_acquires(architecture: str):
    binary = build_waiter(architecture)
    assert binary.spilled_bytes == 0
    assert binary.registers <= 32
    if architecture.startswith("sm_"):
        loop = re.search(
            r"^(\$L\w+):.*?ld\.volatile\.global.*?bra\S*\s+\1;", binary.assembly, re.S | re.M
        )
        assert loop, "the poll is not inside a loop"
        assert re.search(r"\b(atom|ld)\S*\.acquire\.", binary.assembly[loop.end() :])


def build_waiter(architecture: str) -> Binary:
    pointers = {"counters": "*i32", "failed": "*i32", "max_polls": "i64"}
    kernel: Any = signal.wait_for_group
    constants = {"COUNTER_STRIDE": 32}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    return compile_kernel(kernel, signature, constants, {}, architecture, {"num_warps": 1})
