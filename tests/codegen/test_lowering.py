"""Which part of a chain becomes an epilogue, in which words, and why it ends there."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.torch_version import TorchVersion

from overlapc.codegen import GemmSpec
from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.function import function_of
from overlapc.codegen.lowering import lower
from overlapc.codegen.module import module_text
from overlapc.codegen.promotion import CannotLower, Value, common_dtype
from overlapc.errors import KernelError
from tests.codegen.epilogue_cases import MM, MODELS, REFUSED, SCALED, call, given, value

OPERANDS = (
    Input("matrix", "bfloat16"), None, Input("matrix", "float8_e5m2"), Input("matrix", "bfloat16"),
    Input("matrix", "bfloat16"),
)  # fmt: skip
GEMM = Call("aten.mm.default", (given(3), given(4)))
RELU = call("aten.relu.default", value(0))


def lowered(*calls: Call, results: tuple[Ref, ...] = (), columns: int | None = 8):
    last = results or (value(len(calls) - 1),)
    return lower(calls, OPERANDS, last, dtype="bfloat16", columns=columns)


def test_a_whole_chain_is_lowered():
    found = lowered(GEMM, RELU, call("aten.add.Tensor", value(1), given(0), alpha=2))
    assert found.epilogue == Epilogue(
        (Input("matrix", "bfloat16"),),
        (MM, RELU, call("aten.add.Tensor", value(1), given(0), alpha=2)),
    )
    assert (found.a, found.b, found.operands) == (3, 4, (0,))
    assert (found.dtype, found.rest, found.reason) == ("bfloat16", (), "")


def test_a_tensor_may_be_an_operand_and_an_input():
    found = lowered(GEMM, call("aten.add.Tensor", value(0), given(3)))
    assert (found.a, found.operands) == (3, (3,))
    assert str(found.epilogue.calls[0].arguments) == str(MM.arguments)


def test_the_fp8_gemm_says_whether_sums_may_be_short():
    scaled = SCALED["tensor-wise"].calls[0]
    args = (given(0), given(1), given(2), given(3), *scaled.arguments[4:7])
    operands = [None, None, Input("one", "float32"), Input("one", "float32")]
    for fast in (False, True):
        calls = [Call(scaled.op, (*args, fast))]
        found = lower(calls, operands, [value(0)], dtype="float8_e4m3fn")
        assert found.fast == fast
        assert (found.operands, found.dtype) == ((2, 3), "bfloat16")


@pytest.mark.parametrize(("version", "is_lowered"), [("2.11.0+cu130", False), ("2.13.0", True)])
def test_a_cast_is_lowered_where_torch_overflows_as_devices_do(version, is_lowered, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    for dtype in ("float8_e4m3fn", "float8_e5m2"):
        cast = call("prims.convert_element_type.default", value(0), Dtype(dtype))
        found = lowered(GEMM, cast)
        assert (found.dtype == dtype) == (is_lowered or dtype == "float8_e5m2")
        assert ("NaN of what is too large" in found.reason) == (found.dtype != dtype)


@pytest.mark.parametrize(("op", "args"), REFUSED, ids=[f"{op} {args}" for op, args in REFUSED])
def test_a_call_that_cannot_be_lowered_ends_the_epilogue(op, args):
    kwargs = {"device": "cuda"} if op == "aten._to_copy.default" else {}
    kwargs |= {"rounding_mode": "floor"} if op == "aten.div.Tensor_mode" else {}
    refused = call(op, *args, **kwargs)
    after = call("aten.add.Tensor", value(1), value(0))
    found = lowered(GEMM, refused, after)
    assert found.epilogue.calls == (MM,)
    assert found.rest == (refused, after)
    assert found.reason.startswith(f"{op} ends the epilogue: ")


def test_what_the_rest_needs_is_stored_alone():
    cumsum = call("aten.cumsum.default", value(1), 1)
    # Both the GEMM and its relu are needed: only the GEMM can be stored alone.
    found = lowered(GEMM, RELU, cumsum, call("aten.add.Tensor", value(2), value(0)))
    assert found.epilogue.calls == (MM,)
    assert found.rest[0] == RELU
    assert found.reason == "aten.cumsum.default ends the epilogue: " + (
        "it is not in the table of pointwise ops."
    )
    found = lowered(GEMM, RELU, cumsum, call("aten.add.Tensor", value(2), value(1)))
    assert found.epilogue.calls == (MM, RELU)


def test_a_second_result_ends_the_epilogue():
    found = lowered(GEMM, RELU, results=(value(1), value(0)))
    assert found.epilogue.calls == (MM,)
    assert (
        found.reason
        == "aten.relu.default ends the epilogue: one floating value alone can be" + (" stored.")
    )


def test_a_truth_is_not_stored():
    found = lowered(GEMM, RELU, call("aten.gt.Scalar", value(1), 0))
    assert found.epilogue.calls == (MM, RELU)
    assert found.rest[0].op == "aten.gt.Scalar"


def test_a_reshape_to_the_same_shape_is_left_out():
    reshape = call("aten.reshape.default", value(0), (-1, 8))
    found = lowered(GEMM, reshape, call("aten.relu.default", value(1)))
    assert found.epilogue.calls == (MM, RELU)
    assert lowered(GEMM, reshape).epilogue.calls == (MM,)
    assert lowered(GEMM, reshape, columns=4).rest == (reshape,)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (RELU, "no GEMM"),
        (call("aten.cumsum.default", value(0), 1), "no such|no GEMM|not in the table"),
        (call("aten.addmm.default", given(1), given(3), given(4)), "no kernel reads"),
    ],
    ids=str,
)
def test_not_even_a_gemm(first, reason):
    with pytest.raises(CannotLower, match=reason):
        lowered(first)


@pytest.mark.parametrize("shapes", [("vector", "vector"), ("matrix", "one"), ("one", "column")])
def test_other_scales_are_refused(shapes):
    from tests.codegen.epilogue_cases import scaled

    with pytest.raises(CannotLower, match="scales of shapes"):
        function_of(scaled(shapes), "float8_e4m3fn")


@pytest.mark.parametrize("chain", [*MODELS.values(), *SCALED.values()])
def test_the_text_of_an_epilogue_is_read_back(chain):
    text = str(chain)
    assert not set(text) & set(" '\n")
    assert Epilogue.parse(text) == chain
    dtype = "float8_e4m3fn" if "scaled" in text else "bfloat16"
    out = function_of(chain, dtype).values[-1].dtype
    spec = GemmSpec(dtype, out, 16, 16, 16, epilogue=text)
    assert GemmSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["{}", "relu", '{"inputs":[],"calls":[]}', '{"inputs":["x"],"calls":[["a",[],{}]]}',
             str(MODELS["residual"]).replace(",", ", ")],
)  # fmt: skip
def test_another_text_is_refused(text):
    with pytest.raises(KernelError, match="An epilogue cannot be read"):
        Epilogue.parse(text)


def test_a_spec_that_says_another_dtype_is_refused():
    chain = Epilogue((), (MM, call("prims.convert_element_type.default", value(0),
                                   Dtype("float32"))))  # fmt: skip
    with pytest.raises(KernelError, match="it gives float32, not bfloat16"):
        module_text(GemmSpec("bfloat16", "bfloat16", 16, 16, 16, epilogue=str(chain)))


def test_the_module_of_a_chain(golden):
    chain = MODELS["in float32 between"]
    golden(module_text(GemmSpec("bfloat16", "bfloat16", 128, 128, 64, epilogue=str(chain))))


DTYPES = ["float32", "float16", "bfloat16", "bool"]


@pytest.mark.parametrize(("first", "second"), list(product(DTYPES, DTYPES)))
@pytest.mark.parametrize("scalar", [False, True])
def test_promotion_is_that_of_torch(first, second, scalar):
    shape = () if scalar else (1,)
    tensors = (torch.ones(2, dtype=getattr(torch, first)),
               torch.ones(shape, dtype=getattr(torch, second)))  # fmt: skip
    expected = str(torch.result_type(*tensors)).removeprefix("torch.")
    values = [Value("x", first), Value("y", second, "scalar" if scalar else "one")]
    assert common_dtype(values) == expected
    assert common_dtype(values[::-1]) == expected


def test_fp8_is_promoted_to_nothing():
    with pytest.raises(CannotLower, match="promotes"):
        common_dtype([Value("x", "float8_e5m2"), Value("y", "float32")])
