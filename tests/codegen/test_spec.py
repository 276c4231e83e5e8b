"""The canonical text of a spec, and what no spec may say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlapc.codegen import GemmSpec
from overlapc.codegen.spec import DTYPES, LAYOUTS, ORDERS
from overlapc.errors import KernelError

SPEC = GemmSpec("bfloat16", "float32", 128, 256, 64, warps=8, bias=True)
TEXT = (
    "gemm dtype=bfloat16 out=float32 block_m=128 block_n=256 block_k=64 warps=8 stages=3"
    " a=row b=col bias=1 signals=1 even_k=0 precision=ieee loads=pointers flatten=0"
    " order=band epilogue="
)
EPILOGUE = '{"inputs":[],"calls":[["aten.mm.default",["$0","$1"],{}]]}'
sizes = st.sampled_from([16, 32, 64, 128, 256])
specs = st.builds(
    GemmSpec,
    dtype=st.sampled_from(DTYPES),
    out=st.sampled_from(DTYPES),
    block_m=sizes,
    block_n=sizes,
    block_k=sizes,
    warps=st.sampled_from([1, 2, 4, 8, 16]),
    stages=st.integers(1, 6),
    a=st.sampled_from(LAYOUTS),
    b=st.sampled_from(LAYOUTS),
    bias=st.just(False),
    order=st.sampled_from(ORDERS),
    epilogue=st.sampled_from(["", EPILOGUE]),
    signals=st.booleans(),
    even_k=st.booleans(),
)


def test_the_text_is_canonical_and_kept():
    # Texts live in compiled artifacts: a change of this one must be meant.
    assert str(SPEC) == TEXT


@given(specs)
def test_a_text_is_read_back(spec):
    assert GemmSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gemm",
        TEXT.replace("gemm", "attention"),
        TEXT.replace("warps=8", "warps=eight"),
        TEXT.replace("bias=1", "bias=2"),
        TEXT.replace(" warps=8", ""),
        TEXT + " warps=8",
        TEXT + " colour=red",
        TEXT + " warps",
    ],
)
def test_another_text_is_refused_and_named(text):
    with pytest.raises(KernelError) as caught:
        GemmSpec.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int8"},
        {"out": "float64"},
        {"block_m": 48},
        {"block_k": 8},
        {"warps": 3},
        {"stages": 0},
        {"a": "diagonal"},
        {"precision": "tf32"},
        {"precision": "fast"},
        {"precision": "exact"},
        {"loads": "descriptors", "a": "strided"},
        {"loads": "prayers"},
        {"order": "random"},
        {"epilogue": EPILOGUE},
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_generated_is_refused(change):
    with pytest.raises(KernelError, match="No GEMM can be generated"):
        replace(SPEC, **change)
