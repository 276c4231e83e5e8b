"""What a launch on AMD is given: Triton refuses options there that its backend does not know."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from overlapc.codegen.attention import decode
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode_tiles import decode_tile
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import LEAST_BLOCK, tile_for

SPEC = AttentionSpec("bfloat16", 64, 64, lse=False)
AMD = "gfx942"


def known() -> set[str]:
    compiler = pytest.importorskip("triton.backends.amd.compiler")
    return {field.name for field in fields(compiler.HIPOptions)}


def launched(tile, monkeypatch, *, is_amd: bool):
    """The options and constants with which a decode kernel is launched."""
    given = {}
    kernel = decode.build_decode(SPEC, Cache(), tile)
    module = SimpleNamespace(
        KERNEL={(1, 1, 1): lambda *_, **named: given.update(named)},
        CONSTANTS=kernel.module.CONSTANTS,
        OPTIONS=kernel.module.OPTIONS,
    )
    monkeypatch.setattr(decode, "is_amd", lambda: is_amd)
    q = torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16)
    own = replace(kernel, module=module)
    own(q, q, q, q.clone(), splits=1, workspace=own.workspace(q, 1),
        redone=torch.zeros(1, dtype=torch.int32))  # fmt: skip
    return given


@pytest.mark.parametrize("block_n", [LEAST_BLOCK, 64])
def test_a_decode_kernel(block_n, monkeypatch):
    tile = replace(decode_tile(SPEC, Cache(), 1, AMD), block_n=block_n)
    given = launched(tile, monkeypatch, is_amd=True)
    constants = decode.build_decode(SPEC, Cache(), tile).module.CONSTANTS
    assert given["IS_AMD"] is True
    assert set(given) - set(constants) - {"IS_AMD", "PAIRS"} <= known()
    # What is left out there is there to be left out.
    elsewhere = launched(tile, monkeypatch, is_amd=False)
    assert set(elsewhere) - set(given) == {"maxnreg"}
    assert elsewhere["IS_AMD"] is False


def test_a_forward_of_many_rows():
    assert set(build_attention(SPEC, tile_for(SPEC, AMD)).module.OPTIONS) <= known()
