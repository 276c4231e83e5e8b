"""Chains that tests lower: one of every op of the table, and some that models have."""

from __future__ import annotations

from typing import Any

import torch

from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.pointwise import RULES

A, B = Ref("gemm", 0), Ref("gemm", 1)
MM = Call("aten.mm.default", (A, B))

NUMBERS = {"min": -0.5, "max": 0.75, "value": 1.5, "weight": 0.25, "threshold": 0.125}
"""Arguments of these names; others are 0.5."""
POSITIVE = ("log", "log10", "log2", "sqrt", "rsqrt", "log1p", "pow")
"""Ops of which the argument is made positive first."""
AWAY_FROM_ZERO = ("reciprocal", "div", "addcdiv")
"""Ops that divide, by something of at least one half."""


def value(index: int) -> Ref:
    """The value of a call."""
    return Ref("value", index)


def given(index: int) -> Ref:
    """An input."""
    return Ref("input", index)


def call(op: str, *args: Any, **kwargs: Any) -> Call:
    """One call."""
    return Call(op, args, tuple(sorted(kwargs.items())))


def chain_of(op: str, dtype: str) -> Epilogue:
    """A GEMM and one op of the table, on arguments where it is defined and smooth enough."""
    name = op.split(".")[1]
    calls, inputs = [MM], []
    divides = name in AWAY_FROM_ZERO
    if name in POSITIVE or name == "reciprocal":
        calls += [call("aten.abs.default", value(0)), call("aten.add.Tensor", value(1), 0.5)]
    if RULES[op].kind == "bits":
        calls.append(call("aten.gt.Scalar", value(0), 0.25))
    own = value(len(calls) - 1)
    args, kwargs = [], {}
    tensors = [a for a in schema(op) if "Tensor" in str(a.type)]
    for argument in schema(op):
        if argument in tensors:
            if argument.name == "condition":
                args.append(given(len(inputs)))
                inputs.append(Input("column", "bool"))
            elif argument is tensors[-1] and len(tensors) > 1 and divides:
                args.append(Ref("value", -1))  # set below: it is not zero
            elif own not in args:
                args.append(own)
            else:
                args.append(given(len(inputs)))
                inputs.append(Input("matrix", "bool" if RULES[op].kind == "bits" else dtype))
        elif not argument.has_default_value() or str(argument.type) == "Optional[number]":
            number = NUMBERS.get(argument.name, 0.5)
            args.append(None if "Optional[str]" in str(argument.type) else number)
    if Ref("value", -1) in args:
        at = len(inputs)
        inputs.append(Input("vector", dtype))
        calls += [
            call("aten.abs.default", given(at)),
            call("aten.add.Tensor", value(len(calls)), 0.5),
        ]
        args[args.index(Ref("value", -1))] = value(len(calls) - 1)
    if op == "aten.div.Tensor_mode":
        kwargs["rounding_mode"] = args.pop()
    calls.append(call(op, *args, **kwargs))
    if gives_truth(op):  # C is of numbers
        calls.append(call("prims.convert_element_type.default", value(len(calls) - 1),
                          Dtype(dtype)))  # fmt: skip
    return Epilogue(tuple(inputs), tuple(calls))


def schema(op: str) -> Any:
    """The parameters of an overload."""
    overload: Any = torch.ops
    for part in op.split("."):
        overload = getattr(overload, part)
    return overload._schema.arguments


def gives_truth(op: str) -> bool:
    """Whether the rule says so."""
    return RULES[op].kind in ("compare", "logic", "bits")


def bfloat16(shape: str) -> Input:
    """An input."""
    return Input(shape, "bfloat16")


MODELS = {
    "residual": Epilogue((bfloat16("matrix"),), (MM, call("aten.add.Tensor", value(0), given(0)))),
    "gated": Epilogue(
        (bfloat16("matrix"), bfloat16("vector")),
        (
            call("aten.addmm.default", given(1), A, B),
            call("aten.silu.default", value(0)),
            call("aten.mul.Tensor", value(1), given(0)),
        ),
    ),
    "in float32 between": Epilogue(
        (Input("vector", "float32"), bfloat16("matrix"), bfloat16("scalar")),
        (
            MM,
            call("prims.convert_element_type.default", value(0), Dtype("float32")),
            call("aten.mul.Tensor", value(1), given(0)),
            call("aten.gelu.default", value(2), approximate="tanh"),
            call("prims.convert_element_type.default", value(3), Dtype("bfloat16")),
            call("aten.add.Tensor", value(4), given(1), alpha=0.5),
            call("aten.div.Tensor", value(5), given(2)),
        ),
    ),
    "masked": Epilogue(
        (Input("column", "bool"), Input("one", "float32"), bfloat16("column")),
        (
            MM,
            call("aten.gt.Scalar", value(0), 0.1),
            call("aten.logical_and.default", value(1), given(0)),
            call("aten.where.ScalarOther", value(2), value(0), -1.5),
            call("aten.mul.Tensor", value(3), given(1)),
            call("aten.sub.Tensor", value(4), given(2), alpha=2),
            call("prims.convert_element_type.default", value(5), Dtype("float16")),
        ),
    ),
    "alpha and beta": Epilogue(
        (bfloat16("matrix"),),
        (call("aten.addmm.default", given(0), A, B, alpha=0.5, beta=-2),),
    ),
    "no beta": Epilogue((), (call("aten.addmm.default", given(0), A, B, beta=0),)),
    "a reciprocal of one": Epilogue(
        (bfloat16("one"),),
        (MM, call("aten.rsub.Scalar", value(0), 1.25), call("aten.mul.Tensor", value(1), given(0))),
    ),
}  # fmt: skip
"""Of bfloat16 operands."""


REFUSED = (
    ("aten.cumsum.default", (value(0), 1)),
    ("aten.bernoulli.default", (value(0),)),
    ("aten.pow.Tensor_Scalar", (value(0), 7)),
    ("aten.pow.Scalar", (-2.0, value(0))),
    ("aten.bitwise_not.default", (value(0),)),
    ("aten.div.Tensor_mode", (value(0), given(0))),
    ("aten.add.Tensor", (value(0), given(1))),
    ("aten.add.Tensor", (value(0), given(2))),
    ("aten.mm.default", (given(3), given(4))),
    ("aten.reshape.default", (value(0), (-1, 3, 4))),
    ("prims.convert_element_type.default", (value(0), Dtype("int64"))),
    ("aten._to_copy.default", (value(0),)),
    ("aten.no_such_op.default", (value(0),)),
)
"""Calls after a GEMM that end its epilogue; of the inputs 1 is None, 2 fp8, 3 and 4 are A and B."""


def scaled(scales: tuple[str, str], *, bias: bool = False, out: str = "bfloat16") -> Epilogue:
    """A GEMM of fp8 with scales of these shapes."""
    inputs = [Input(scales[0], "float32"), Input(scales[1], "float32")]
    inputs += [bfloat16("vector")] * bias
    args = (A, B, given(0), given(1), given(2) if bias else None, None, Dtype(out))
    return Epilogue(tuple(inputs), (call("aten._scaled_mm.default", *args),))


SCALED = {
    "tensor-wise": scaled(("one", "one")),
    "of no dimension": scaled(("scalar", "scalar")),
    "row-wise": scaled(("column", "vector")),
    "with a bias": scaled(("column", "vector"), bias=True),
    "to float32": scaled(("one", "vector"), out="float32"),
}
