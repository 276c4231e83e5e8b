"""The table of ATen's pointwise ops: each overload's Triton text, and how torch types its result.

In a text, names in braces are the parameters of the overload's schema. Tensors come as float32 (as
int1 where a truth is wanted), numbers as literals. What takes more than a text is a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from overlapc.codegen.promotion import CannotLower

SAME = "same"
"""Computes in the promoted dtype, and gives it."""
FLOAT = "float"
"""Like ``SAME``, but truths become float32 first."""
COMPARE = "compare"
"""Compares in the promoted dtype, to which numbers are rounded too; gives a truth."""
LOGIC = "logic"
"""Takes truths: of a number, whether it is not zero; gives one."""
BITS = "bits"
"""Takes truths alone; gives one."""

Arguments = Mapping[str, Any]
"""By parameter: text of a tensor; numbers, strings, truths and None as they are."""


@dataclass(frozen=True)
class Rule:
    """How one overload is written."""

    text: str | Callable[[Arguments], str]
    kind: str = SAME
    exact: bool = False
    """The result is one of the operands, or as exact as they are: it needs no rounding."""


def literal(value: Any) -> str:
    """A number in Triton's language."""
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        return f'float("{number}")'
    return repr(number)


def write(rule: Rule, arguments: Arguments) -> str:
    """The text of one call."""
    if callable(rule.text):
        return rule.text(arguments)
    return rule.text.format_map(_texts(arguments))


def _texts(arguments: Arguments) -> dict[str, str]:
    # Numbers come as numbers: only here do they become text.
    numbers = (int, float)
    return {k: literal(v) if isinstance(v, numbers) else str(v) for k, v in arguments.items()}


def scaled(text: str, factor: float) -> str:
    """A text times a number."""
    return text if factor == 1 else f"{literal(factor)} * {text}"


def _add(sign: str) -> Callable[[Arguments], str]:
    def text(given: Arguments) -> str:
        texts = _texts(given)
        return f"{texts['self']} {sign} {scaled(texts['other'], given['alpha'])}"

    return text


def _rsub(given: Arguments) -> str:
    texts = _texts(given)
    return f"{texts['other']} - {scaled(texts['self'], given['alpha'])}"


def _div(given: Arguments) -> str:
    if given.get("rounding_mode") is not None:
        raise CannotLower(f"division that rounds by {given['rounding_mode']!r} is not lowered")
    # Correctly rounded, as eager divides; Triton's own operator is not.
    return "tl.div_rn({self}, {other})".format_map(_texts(given))


def _pow(given: Arguments) -> str:
    """As eager does: products and roots where there are some, else by logarithms."""
    x, exponent = given["self"], given["exponent"]
    if exponent == int(exponent) and 1 <= abs(exponent) <= 4:
        product = " * ".join([x] * int(abs(exponent)))
        return product if exponent > 0 else f"tl.div_rn(1.0, {product})"
    special = {
        0: f"tl.full({x}.shape, 1.0, tl.float32)",
        0.5: f"tl.sqrt_rn({x})",
        -0.5: f"tl.rsqrt({x})",
    }
    if exponent in special:
        return special[exponent]
    if exponent == int(exponent):
        raise CannotLower(f"the power {exponent} is not lowered: its sign depends on the base's")
    return f"tl.exp2({literal(exponent)} * tl.log2({x}))"


def _power_of(given: Arguments) -> str:
    import math

    base, x = given["self"], given["exponent"]
    if base <= 0:
        raise CannotLower(f"powers of {base} are not lowered")
    return f"tl.exp2({literal(math.log2(base))} * {x})"


def _gelu(given: Arguments) -> str:
    x = given["self"]
    if given["approximate"] == "tanh":
        cubic = f"{x} + 0.044715 * {x} * {x} * {x}"
        return f"0.5 * {x} * (1.0 + pointwise.tanh(0.7978845608028654 * ({cubic})))"
    return f"0.5 * {x} * (1.0 + tl.erf(0.7071067811865476 * {x}))"


def _clamp(given: Arguments) -> str:
    texts, text = _texts(given), given["self"]
    if given.get("min") is not None:
        text = f"pointwise.larger({text}, {texts['min']})"
    if given.get("max") is not None:
        text = f"pointwise.smaller({text}, {texts['max']})"
    return text


def _addc(combined: str) -> Callable[[Arguments], str]:
    def text(given: Arguments) -> str:
        product = combined.format_map(given)
        return f"{given['self']} + {scaled(product, given['value'])}"

    return text


def _elu(given: Arguments) -> str:
    x, texts = given["self"], _texts(given)
    negative = f"{texts['alpha']} * pointwise.expm1({scaled(x, given['input_scale'])})"
    return scaled(f"tl.where({x} > 0.0, {x}, {negative})", given["scale"])


SIX = "pointwise.smaller(pointwise.larger({self} + 3.0, 0.0), 6.0)"

UNARY = {
    "abs": Rule("tl.abs({self})", exact=True),
    "alias": Rule("{self}", exact=True),
    "ceil": Rule("tl.ceil({self})", exact=True),
    "celu": Rule("pointwise.larger({self}, 0.0) + pointwise.smaller({alpha} * "
                 "pointwise.expm1(tl.div_rn({self}, {alpha})), 0.0)"),
    "clone": Rule("{self}", exact=True),
    "cos": Rule("tl.cos({self})", FLOAT),
    "detach": Rule("{self}", exact=True),
    "elu": Rule(_elu),
    "erf": Rule("tl.erf({self})", FLOAT),
    "exp": Rule("tl.exp({self})", FLOAT),
    "exp2": Rule("tl.exp2({self})", FLOAT),
    "expm1": Rule("pointwise.expm1({self})", FLOAT),
    "floor": Rule("tl.floor({self})", exact=True),
    "frac": Rule("{self} - pointwise.truncate({self})", exact=True),
    "gelu": Rule(_gelu),
    "hardsigmoid": Rule(f"tl.div_rn({SIX}, 6.0)"),
    "hardswish": Rule(f"tl.div_rn({{self}} * {SIX}, 6.0)"),
    "hardtanh": Rule("pointwise.smaller(pointwise.larger({self}, {min_val}), {max_val})"),
    "leaky_relu": Rule("tl.where({self} > 0.0, {self}, {negative_slope} * {self})"),
    "log": Rule("tl.log({self})", FLOAT),
    "log10": Rule("0.30102999566398120 * tl.log2({self})", FLOAT),
    "log1p": Rule("pointwise.log1p({self})", FLOAT),
    "log2": Rule("tl.log2({self})", FLOAT),
    "mish": Rule("{self} * pointwise.tanh(pointwise.log1p(tl.exp({self})))"),
    "neg": Rule("-{self}", exact=True),
    "positive": Rule("{self}", exact=True),
    "reciprocal": Rule("tl.div_rn(1.0, {self})", FLOAT),
    "relu": Rule("pointwise.larger({self}, 0.0)", exact=True),
    "relu6": Rule("pointwise.smaller(pointwise.larger({self}, 0.0), 6.0)", exact=True),
    "round": Rule("pointwise.round_half_even({self})", exact=True),
    "rsqrt": Rule("tl.rsqrt({self})", FLOAT),
    "sgn": Rule("pointwise.sign({self})", exact=True),
    "sigmoid": Rule("tl.sigmoid({self})", FLOAT),
    "sign": Rule("pointwise.sign({self})", exact=True),
    "silu": Rule("{self} * tl.sigmoid({self})"),
    "sin": Rule("tl.sin({self})", FLOAT),
    "softplus": Rule("pointwise.softplus({self}, {beta}, {threshold})"),
    "sqrt": Rule("tl.sqrt_rn({self})", FLOAT),
    "square": Rule("{self} * {self}"),
    "tanh": Rule("pointwise.tanh({self})", FLOAT),
    "threshold": Rule("tl.where({self} <= {threshold}, {value}, {self})"),
    "trunc": Rule("pointwise.truncate({self})", exact=True),
}  # fmt: skip

TWO = {
    "add": Rule(_add("+")),
    "sub": Rule(_add("-")),
    "rsub": Rule(_rsub),
    "mul": Rule("{self} * {other}"),
    "div": Rule(_div, FLOAT),
    "eq": Rule("{self} == {other}", COMPARE),
    "ne": Rule("{self} != {other}", COMPARE),
    "lt": Rule("{self} < {other}", COMPARE),
    "le": Rule("{self} <= {other}", COMPARE),
    "gt": Rule("{self} > {other}", COMPARE),
    "ge": Rule("{self} >= {other}", COMPARE),
}
"""With the overloads ``Tensor`` and ``Scalar``."""

CLAMPS = {"clamp": Rule(_clamp), "clamp_min": Rule(_clamp), "clamp_max": Rule(_clamp)}
"""With the overloads ``default`` (numbers) and ``Tensor``."""

OTHERS = {
    "addcdiv.default": Rule(_addc("({tensor1} / {tensor2})")),
    "addcmul.default": Rule(_addc("{tensor1} * {tensor2}")),
    "atan2.default": Rule("pointwise.atan2({self}, {other})", FLOAT),
    "bitwise_and.Tensor": Rule("{self} & {other}", BITS),
    "bitwise_not.default": Rule("{self} == 0", BITS),
    "bitwise_or.Tensor": Rule("{self} | {other}", BITS),
    "bitwise_xor.Tensor": Rule("{self} ^ {other}", BITS),
    "div.Tensor_mode": Rule(_div, FLOAT),
    "fmax.default": Rule("tl.maximum({self}, {other})", exact=True),
    "fmin.default": Rule("tl.minimum({self}, {other})", exact=True),
    "isinf.default": Rule('tl.abs({self}) == float("inf")', COMPARE),
    "isnan.default": Rule("{self} != {self}", COMPARE),
    "lerp.Scalar": Rule("{self} + {weight} * ({end} - {self})"),
    "lerp.Tensor": Rule("{self} + {weight} * ({end} - {self})"),
    "logical_and.default": Rule("{self} & {other}", LOGIC),
    "logical_not.default": Rule("{self} == 0", LOGIC),
    "logical_or.default": Rule("{self} | {other}", LOGIC),
    "logical_xor.default": Rule("{self} ^ {other}", LOGIC),
    "maximum.default": Rule("pointwise.larger({self}, {other})", exact=True),
    "minimum.default": Rule("pointwise.smaller({self}, {other})", exact=True),
    "pow.Scalar": Rule(_power_of, FLOAT),
    "pow.Tensor_Scalar": Rule(_pow),
    "sigmoid_backward.default": Rule("{grad_output} * (1.0 - {output}) * {output}"),
    "tanh_backward.default": Rule("{grad_output} * (1.0 - {output} * {output})"),
    "threshold_backward.default": Rule("tl.where({self} <= {threshold}, 0.0, {grad_output})",
                                       exact=True),
    "where.ScalarOther": Rule("tl.where({condition}, {self}, {other})"),
    "where.ScalarSelf": Rule("tl.where({condition}, {self}, {other})"),
    "where.self": Rule("tl.where({condition}, {self}, {other})", exact=True),
}  # fmt: skip

RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": rule for name, rule in UNARY.items()},
    **{f"aten.{name}.{way}": rule for name, rule in TWO.items() for way in ("Tensor", "Scalar")},
    **{
        f"aten.{name}.{way}": rule for name, rule in CLAMPS.items() for way in ("default", "Tensor")
    },
    **{f"aten.{name}": rule for name, rule in OTHERS.items()},
}

CASTS = ("prims.convert_element_type.default", "aten._to_copy.default", "aten.to.dtype")
