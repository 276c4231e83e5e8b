"""Values of float8 are read in pairs of columns where they lie so, and else one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from tests.codegen.catching import wrong_values

SPEC = AttentionSpec("bfloat16", 32, 32, groups=3, after=0, align="bottom_right", scale=32**-0.5)
CACHE = Cache(dtype="float8_e4m3fn", scales=True)


def check(interpreted, spec=SPEC, cache=CACHE, mutate=(), **case):
    interpreted("decode_cases.call", "run", str(spec), str(cache), case, mutate=mutate)


@pytest.mark.parametrize(
    ("spec", "case"),
    [
        (SPEC, {"rows": 2, "splits": 3}),
        (replace(SPEC, softmax="first_tile", value_dim=20), {"rows": 3}),
        (SPEC, {"offset": 300.0, "redone": 6}),
        (replace(SPEC, dtype="float32"), {"rows": 2}),
    ],
    ids=["plain", "of the first keys, ragged", "computed again", "not in tf32"],
)
def test_values(interpreted, spec, case):
    check(interpreted, spec, **case)


MUTANTS = {
    "odd columns are even ones": ("odd = (both >> 8).to(tl.uint8)", "odd = both.to(tl.uint8)"),
    "columns are exchanged": ("tl.join(even, odd)", "tl.join(odd, even)"),
    "odd sums are not rescaled": ("total[1] * shrunk[:, None])", "total[1])"),
    "odd columns are multiplied in tf32": (
        "total[1], input_precision=PRECISION", "total[1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(interpreted, name):
    spec = replace(SPEC, softmax="online", dtype="float32" if "tf32" in name else SPEC.dtype)
    with wrong_values():
        check(interpreted, spec, factor=3.0, mutate=[MUTANTS[name]])


def test_what_does_not_lie_in_pairs_is_read_otherwise():
    """Mutants: any strides; any address; an odd number of columns; devices that take bytes."""
    kernel = build_decode(SPEC, CACHE, AttentionTile(16, 16, 4, 2))
    memory = torch.zeros(2 * 2 * 40 * 66 + 1, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = memory[:-1].view(2, 2, 40, 66)
    assert kernel._takes_pairs(values[..., :32])
    assert kernel._takes_pairs(values[..., 2:34])
    assert not kernel._takes_pairs(values[..., 1:33])
    assert not kernel._takes_pairs(values[..., :64:2])
    assert not kernel._takes_pairs(memory[1:].view(2, 2, 66, 40).mT[..., :32])
    assert not kernel._takes_pairs(memory[: 2 * 2 * 40 * 65].view(2, 2, 40, 65)[..., :32])
    assert CACHE.has_pairs(SPEC, "sm_90")
    assert not CACHE.has_pairs(replace(SPEC, value_dim=31), "sm_90")
    assert not CACHE.has_pairs(SPEC, "sm_80")
    assert not CACHE.has_pairs(SPEC, "gfx942")
    assert not Cache().has_pairs(SPEC, "sm_90")
    latent = replace(SPEC, head_dim=48)
    assert not replace(CACHE, shares_values=True).has_pairs(latent, "sm_90")
