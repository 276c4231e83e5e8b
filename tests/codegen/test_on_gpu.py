"""Every kind of generated kernel on a real device: values, counters, and what was not written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.codegen import GemmSpec, build
from overlapc.codegen.function import function_of
from overlapc.codegen.oracle import error_over_bound
from overlapc.codegen.pointwise import RULES
from overlapc.codegen.selfcheck import Case
from overlapc.codegen.tiles import spec_for
from overlapc.planning.tiles import tiles_for
from tests.codegen.epilogue_cases import MODELS, SCALED, chain_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

SIZES = ((1000, 720, 336), (131, 64, 16), (2048, 1024, 512))
"""m, n, k; columns that pack, and strides that the TMA unit reads."""
SMALL = {"block_m": 64, "block_n": 64, "block_k": 64, "warps": 4, "stages": 3}


def has(capability: tuple[int, int]) -> bool:
    return torch.cuda.get_device_capability() >= capability


def check(spec: GemmSpec, sizes: tuple[tuple[int, int, int], ...] = SIZES) -> None:
    """Raise AssertionError unless values and counters are right."""
    if spec.loads == "descriptors" and not has((9, 0)):
        pytest.skip("needs a TMA unit: sm_90")
    if "float8" in f"{spec.dtype} {spec.out}" and not has((8, 9)):
        pytest.skip("needs fp8: sm_89")
    kernel = build(spec)
    for index, size in enumerate(sizes):
        torch.manual_seed(index)
        case = Case.random(kernel, size, "cuda")
        case.run(ctas=(3, 20, 1000)[index % 3])
        error = error_over_bound(spec, case.a, case.b, None, case.result, case.inputs)
        assert error <= 1, f"{size}: {error}"
        assert case.is_counted


@pytest.mark.parametrize("order", ["band", "packed"])
@pytest.mark.parametrize("loads", ["pointers", "descriptors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_dtypes_loads_and_orders(dtype, loads, order):
    for out in ("bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"):
        spec = GemmSpec(dtype, out, **SMALL, loads=loads, order=order)
        check(spec)
        check(replace(spec, flatten=True))
        if dtype in ("float16", "bfloat16"):
            check(replace(spec, b="row"))


def test_column_major_operands_by_descriptors():
    for b in ("row", "col"):
        spec = GemmSpec("bfloat16", "bfloat16", **SMALL, loads="descriptors", a="col", b=b)
        check(spec, ((1000, 720, 336), (136, 64, 16)))


def test_the_widest_tile():
    major, minor = torch.cuda.get_device_capability()
    tile = tiles_for(f"sm_{major}{minor}", "bfloat16")[0]
    for loads in ("pointers", "descriptors"):
        check(GemmSpec("bfloat16", "bfloat16", **replace(tile, stages=3).built, loads=loads))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e4m3fn"])
def test_every_configuration(dtype):
    major, minor = torch.cuda.get_device_capability()
    architecture = f"sm_{major}{minor}"
    a = torch.empty(64, 128, device="meta", dtype=getattr(torch, dtype))
    for tile in tiles_for(architecture, dtype):
        check(spec_for(a, a.t(), architecture=architecture, out="bfloat16", tile=tile))


@pytest.mark.parametrize("name", MODELS)
def test_chains_of_models(name):
    out = function_of(MODELS[name], "bfloat16").values[-1].dtype
    check(GemmSpec("bfloat16", out, **SMALL, epilogue=str(MODELS[name])))


@pytest.mark.parametrize("name", SCALED)
def test_scales_of_fp8(name):
    out = function_of(SCALED[name], "float8_e4m3fn").values[-1].dtype
    for precision in ("ieee", "fast"):
        check(GemmSpec("float8_e4m3fn", out, **SMALL, precision=precision,
                       epilogue=str(SCALED[name])))  # fmt: skip


@pytest.mark.parametrize("op", RULES)
def test_every_op_of_the_table(op):
    chain = chain_of(op, "bfloat16")
    check(GemmSpec("bfloat16", "bfloat16", **SMALL, epilogue=str(chain)), SIZES[:1])
