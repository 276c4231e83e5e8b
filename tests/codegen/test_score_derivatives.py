"""Derivatives of programs of scores, against autograd in float64, op by op and whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from overlapc.codegen.attention import derivatives
from overlapc.codegen.attention.derivative import derivative, derivative_text
from overlapc.codegen.attention.derivatives import DERIVATIVES, FLAT
from overlapc.codegen.attention.scores import PRODUCT
from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.pointwise import CASTS, RULES
from overlapc.codegen.promotion import CannotLower
from overlapc.runtime.attention.program import values_of
from tests.codegen import score_programs as programs

POSITIVE = ("log", "log10", "log1p", "log2", "rsqrt", "sqrt", "pow")
NUMBERS: dict[str, Any] = {
    "threshold": 0.2, "value": 0.4, "exponent": 2.5, "self": 1.7, "other": 1.3, "weight": 0.3,
    "min": -0.5, "max": 0.8, "rounding_mode": None,
}  # fmt: skip
VARIANTS = {
    "aten.gelu.default": [{"approximate": "none"}, {"approximate": "tanh"}],
    "aten.pow.Tensor_Scalar": [{"exponent": n} for n in (0.5, 1, 2, 3, -1, 2.5)],
    "aten.clamp.default": [{"max": None}, {"min": None}, {}],
    "aten.add.Tensor": [{"alpha": 1}, {"alpha": -0.5}],
    "aten.elu.default": [{"alpha": 0.7, "scale": 1.5, "input_scale": 0.5}],
    "aten.softplus.default": [{"beta": 1.5, "threshold": 1.0}],
}
CASES = [
    (op, operand, change)
    for op, texts in DERIVATIVES.items()
    if op not in CASTS
    for operand in texts
    for change in VARIANTS.get(op, [{}])
]


def one_call(op: str, operand: str, change: dict[str, Any]) -> Epilogue:
    """A program of one call on the product, its other tensors inputs."""
    overload: Any = torch.ops
    for part in op.split("."):
        overload = getattr(overload, part)
    arguments, named, inputs = [], {}, []
    for argument in overload._schema.arguments:
        name = argument.name
        if name == operand:
            arguments.append(Ref("value", 0))
        elif str(argument.type) in ("Tensor", "Optional[Tensor]"):
            arguments.append(Ref("input", len(inputs)))
            inputs.append(Input("matrix", "bool" if name == "condition" else "float32"))
        elif argument.kwarg_only:
            named[name] = change.get(name, NUMBERS.get(name, argument.default_value))
        elif name in change or not argument.has_default_value() or name in ("min", "max"):
            arguments.append(change.get(name, NUMBERS.get(name)))
        else:
            arguments.append(argument.default_value)
    return Epilogue(tuple(inputs), (PRODUCT, Call(op, tuple(arguments), tuple(named.items()))))


def given(program: Epilogue) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A product and inputs, positive where logarithms want it; two of them are equal."""
    torch.manual_seed(0)
    is_positive = any(name in call.op for call in program.calls for name in POSITIVE)
    sizes = {"matrix": (4, 5), "column": (4, 1), "vector": (1, 5), "one": (1, 1), "scalar": ()}

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        value = 2.0 * torch.randn(shape, dtype=torch.float64)
        return value.abs() + 0.1 if is_positive else value

    inputs = [
        torch.rand(sizes[item.shape]) < 0.5 if item.dtype == "bool" else tensor(sizes[item.shape])
        for item in program.inputs
    ]
    product = tensor((4, 5))
    if inputs and inputs[0].dtype == torch.float64:
        product[0] = inputs[0][0].expand(5) if inputs[0].dim() else inputs[0]
    return product, inputs


def check(program: Epilogue, of: int | None = None) -> None:
    product, inputs = given(program)
    leaf = (product if of is None else inputs[of]).requires_grad_()
    scores = values_of(program.calls[1:], [product], inputs)[-1]
    gradient = torch.randn_like(scores)
    (wanted,) = torch.autograd.grad(scores, leaf, gradient)
    with torch.no_grad():
        found = values_of(derivative(program, of), [product, gradient], inputs)[-1]
    found = found.sum_to_size(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)
    assert "def derivative(" in derivative_text(program, of)


@pytest.mark.parametrize(("op", "operand", "change"), CASES, ids=str)
def test_each_op(op, operand, change):
    check(one_call(op, operand, change))


@pytest.mark.parametrize(
    "text", [programs.SOFT_CAP, programs.ALIBI, programs.ADDED, programs.KEPT, programs.EVERY_SHAPE]
)
def test_programs(text):
    program = Epilogue.parse(text)
    check(program)
    for index, item in enumerate(program.inputs):
        if item.dtype != "bool":
            check(program, index)


TWICE = programs.program(
    "column:float32", ("mul.Tensor", "%0", "%0"), ("sin.default", "%1"), ("add.Tensor", "%2", "%0"),
    ("mul.Tensor", "@0", "@0"), ("mul.Tensor", "%3", "%4"), ("mul.Tensor", "%5", "%1"),
)  # fmt: skip


def test_values_that_are_used_twice_add_up():
    check(Epilogue.parse(TWICE))
    check(Epilogue.parse(TWICE), 0)


def test_a_cast_passes_the_gradient_on():
    cast = ("prims.convert_element_type.default", Ref("value", 0), Dtype("bfloat16"))
    program = Epilogue((), (PRODUCT, Call(cast[0], cast[1:])))
    assert derivative(program) == ()


def test_only_what_the_gradient_takes_is_computed():
    """A bias and its factors have no part in the gradient of the product."""
    assert derivative(Epilogue.parse(programs.ADDED)) == ()
    assert len(derivative(Epilogue.parse(programs.KEPT))) == 1


def test_ops_without_a_derivative_say_so():
    known = set(DERIVATIVES) | FLAT
    unknown = sorted(set(RULES) - known)
    assert unknown == [
        "aten.clamp.Tensor", "aten.clamp_max.Tensor", "aten.clamp_min.Tensor",
        "aten.fmax.default", "aten.fmin.default", "aten.mish.default",
        "aten.sigmoid_backward.default", "aten.tanh_backward.default",
        "aten.threshold_backward.default",
    ]  # fmt: skip
    program = programs.program("matrix:float32", ("fmax.default", "%0", "@0"))
    with pytest.raises(CannotLower, match=r"aten.fmax.default has no derivative by self"):
        derivative(Epilogue.parse(program))
    program = programs.program(
        "matrix:float32", ("floor.default", "%0"), ("add.Tensor", "%1", "@0")
    )
    with pytest.raises(CannotLower, match="no gradient for the product"):
        derivative(Epilogue.parse(program))
    check(Epilogue.parse(program), 0)


MUTANTS = [("tanh.default", "self", "grad * (1 - result)"), ("sub.Tensor", "other", "grad * alpha"),
           ("maximum.default", "self", "where(self >= other, grad, 0)")]  # fmt: skip


@pytest.mark.parametrize(("name", "operand", "text"), MUTANTS)
def test_a_mutant_is_caught(monkeypatch, name, operand, text):
    op = f"aten.{name}"
    monkeypatch.setitem(derivatives.DERIVATIVES, op, {**DERIVATIVES[op], operand: text})
    derivative.cache_clear()
    with pytest.raises(AssertionError):
        check(one_call(op, operand, {}))
    derivative.cache_clear()
