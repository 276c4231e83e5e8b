"""Kernels that Triton compiled, on emulated devices: values against float64, what they touch, and
whether their warps wait for each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.spec import GemmSpec
from tests.codegen import score_programs as programs

SPEC = AttentionSpec("bfloat16", 64, 64, groups=1, scale=0.125, after=0)
FLOAT = replace(SPEC, dtype="float32", head_dim=32, value_dim=32)
WIDE = {"rows": 90, "keys": 150, "batch": 1, "tile": (64, 64)}
DECODE = replace(SPEC, groups=3, align="bottom_right", lengths=True)
LATENT = replace(DECODE, head_dim=576, value_dim=512, groups=16, scale=576**-0.5)
READ = {"splits": 3, "lengths": (100, 37), "block_n": 32}
GEMM = GemmSpec("bfloat16", "bfloat16", 64, 64, 64, loads="pointers", stages=3, warps=4)
CHAIN = replace(GEMM, loads="descriptors", flatten=True)
SIZES = (150, 136, 200, (64, 86))
"""m, n, k and rows of bands."""

RUNS = {
    "many rows, by warps": (
        "sm_80", "attention", SPEC, {**WIDE, "tile": (64, 32), "layout": "dense"},
    ),
    "many rows, of float32": ("sm_90", "attention", FLOAT, {"rows": 45}),
    "many rows, by warpgroups": ("sm_90", "attention", SPEC, {**WIDE, "ones": 16}),
    "many rows, by the TMA unit": ("sm_90", "attention", SPEC, {**WIDE, "by_tma": True}),
    "many rows, values a tile behind": ("sm_90", "attention", SPEC, {**WIDE, "ahead": True}),
    "many rows, masks that are looked through": (
        "sm_90", "attention", replace(FLOAT, program=programs.KEPT, sinks=True), {"kept": 0.03},
    ),
    "many rows, scores of hundreds": (
        "sm_90", "attention", replace(SPEC, softmax="zero"),
        {**WIDE, "spread": 300.0, "redone": None},
    ),
    "few rows": ("sm_80", "decode", DECODE, Cache(), {"rows": 2, **READ}),
    "few rows, pages of float8": (
        "sm_90", "decode", DECODE, Cache(page=16, dtype="float8_e4m3fn", scales=True), READ,
    ),
    "few rows, a latent cache": (
        "sm_90", "decode", LATENT, Cache(shares_values=True), {**READ, "lengths": (70, 37)},
    ),
    "gradients": ("sm_90", "gradients", SPEC, {"rows": 70, "keys": 70, "tile": (64, 64)}),
    "gradients of float32": ("sm_80", "gradients", FLOAT, {"batch": 1, "tile": (32, 32)}),
    "a GEMM that announces tiles": ("sm_90", "gemm", GEMM, *SIZES, {}),
    "a GEMM that announces them late": ("sm_90", "gemm", CHAIN, *SIZES, {}),
    "a GEMM that announces them late, by warps": (
        "sm_80", "gemm", replace(GEMM, flatten=True), *SIZES, {},
    ),
    "a GEMM of float8": (
        "sm_90", "gemm", replace(CHAIN, dtype="float8_e4m3fn"), 150, 144, 208, (64, 86), {},
    ),
}  # fmt: skip
"""What is compiled for, the kind of kernel, and what ``cases.run`` is told of it."""

MUTANTS = {
    "no barrier behind what is stored": (
        "many rows, by warps", (r"bar\.sync\s+0;", "", 0), "with no barrier between",
    ),
    "copies that nobody waits for": (
        "few rows", (r"cp\.async\.wait_group\s+\S+;", "cp.async.wait_group 99;", 0),
        "NaN is not where",
    ),
    "no fence before a product": (
        "many rows, by warpgroups", (r"fence\.proxy\.async\S*;", "", 0), "no fence between",
    ),
    "products that nobody waits for": (
        "many rows, by warpgroups", (r"wgmma\.wait_group\S* 0;", "wgmma.wait_group.x 9;", 0),
        "nobody waited for",
    ),
    "fewer bytes than a copy has": (
        "many rows, by the TMA unit", (r"(expect_tx\S+ _, \[\S+\],) 8192", r"\1 4096", 0),
        "never arrives",
    ),
    "rows beyond the last": (
        "many rows, of float32", (r"@%p\d+ (ld\.global)", r"\1", 0), "outside every tensor",
    ),
    "bytes of another row": (
        "many rows, by the TMA unit", (r"(bulk\.tensor\S+ \[\S+\], \[\S+, \{)%r\d+", r"\g<1>1", 0),
        "error",
    ),
    "parts that nobody adds": (
        "few rows", (r"(atom\.global\S*)\.add\.([us]32)", r"\1.min.\2", 0), "NaN is not where",
    ),
    "a tile that is announced while it is computed": (
        "a GEMM that announces them late",
        ("stored = group + await_stores(IS_AMD, FLATTEN)",
         "await_stores(IS_AMD, FLATTEN)\n            stored = group"),
        r"counters \[3, 9",
    ),
}  # fmt: skip
"""A run, what is changed in PTX or in a template, and what then is said."""


def given(name: str):
    *positional, named = RUNS[name]
    texts = [str(each) if hasattr(each, "__dataclass_fields__") else each for each in positional]
    return texts, named


LONG = {"gradients of float32", "many rows, scores of hundreds", "many rows, of float32"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in RUNS]
)
def test_what_is_compiled_gives_what_it_must(emulated, name):
    positional, named = given(name)
    assert emulated(*positional, **named)


@pytest.mark.parametrize(("name", "change", "said"), MUTANTS.values(), ids=MUTANTS.keys())
def test_what_is_changed_is_caught(emulated, name, change, said):
    positional, named = given(name)
    key = "change" if len(change) == 3 else "mutate"
    with pytest.raises(AssertionError, match=said):
        emulated(*positional, **named, **{key: change})
