"""The table of derivatives of ATen's pointwise ops: what each operand of a call adds, as text.

``grad`` is the gradient of the call's value, ``result`` that value, other names are parameters of
the overload's schema; ``expressions.py`` says what a text may hold. Zero is the number ``0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from overlapc.codegen.pointwise import BITS, CASTS, COMPARE, LOGIC, RULES
from overlapc.codegen.promotion import CannotLower

Text = str | Callable[[Mapping[str, Any]], str]
"""Of an operand; a function of the call's arguments where those that are no tensors matter."""


def _power(given: Mapping[str, Any]) -> str:
    exponent = given["exponent"]
    special = {0: "0", 1: "grad", 2: "2 * grad * self"}
    return special.get(exponent, f"grad * ({exponent} * pow(self, {exponent - 1}))")


def _power_of(given: Mapping[str, Any]) -> str:
    if given["self"] <= 0:
        raise CannotLower(f"powers of {given['self']} have no derivative")
    return f"grad * result * {math.log(given['self'])}"


def _clamp(given: Mapping[str, Any]) -> str:
    text = "grad"
    if given.get("min") is not None:
        text = f"where(self >= min, {text}, 0)"
    return text if given.get("max") is None else f"where(self <= max, {text}, 0)"


def _gelu(given: Mapping[str, Any]) -> str:
    if given["approximate"] == "tanh":
        angle = "tanh(0.7978845608028654 * (self + 0.044715 * self * self * self))"
        slope = "0.7978845608028654 + 0.1070322243 * self * self"
        return f"0.5 * grad * (1 + {angle} + self * (1 - {angle} * {angle}) * ({slope}))"
    density = "0.3989422804014327 * exp(-0.5 * self * self)"
    return f"grad * (0.5 + 0.5 * erf(0.7071067811865476 * self) + self * {density})"


UNARY: Mapping[str, Text] = {
    "abs": "grad * sign(self)",
    "alias": "grad",
    "celu": "where(self > 0, grad, grad * exp(self / alpha))",
    "clamp": _clamp,
    "clamp_max": _clamp,
    "clamp_min": _clamp,
    "clone": "grad",
    "cos": "-grad * sin(self)",
    "elu": "where(self > 0, grad * scale,"
           " grad * (scale * alpha * input_scale) * exp(self * input_scale))",
    "erf": "grad * (1.1283791670955126 * exp(-self * self))",
    "exp": "grad * result",
    "exp2": "grad * (0.6931471805599453 * result)",
    "expm1": "grad * (result + 1)",
    "frac": "grad",
    "gelu": _gelu,
    "hardsigmoid": "where(self > -3, where(self < 3, grad / 6, 0), 0)",
    "hardswish": "where(self > -3, where(self < 3, grad * (self / 3 + 0.5), grad), 0)",
    "hardtanh": "where(self > min_val, where(self < max_val, grad, 0), 0)",
    "leaky_relu": "where(self > 0, grad, grad * negative_slope)",
    "log": "grad / self",
    "log10": "grad / (self * 2.302585092994046)",
    "log1p": "grad / (self + 1)",
    "log2": "grad / (self * 0.6931471805599453)",
    "neg": "-grad",
    "positive": "grad",
    "reciprocal": "-grad * result * result",
    "relu": "where(self > 0, grad, 0)",
    "relu6": "where(self > 0, where(self < 6, grad, 0), 0)",
    "rsqrt": "-0.5 * grad * result * result * result",
    "sigmoid": "grad * (1 - result) * result",
    "silu": "grad * sigmoid(self) * (1 + self * (1 - sigmoid(self)))",
    "sin": "grad * cos(self)",
    "softplus": "where(self * beta > threshold, grad, grad * sigmoid(self * beta))",
    "sqrt": "grad / (2 * result)",
    "square": "2 * grad * self",
    "tanh": "grad * (1 - result * result)",
    "threshold": "where(self > threshold, grad, 0)",
}  # fmt: skip
"""Of the only tensor, ``self``."""

TWO: Mapping[str, Mapping[str, Text]] = {
    "add": {"self": "grad", "other": "grad * alpha"},
    "sub": {"self": "grad", "other": "grad * -alpha"},
    "rsub": {"self": "grad * -alpha", "other": "grad"},
    "mul": {"self": "grad * other", "other": "grad * self"},
    "div": {"self": "grad / other", "other": "-grad * (result / other)"},
}
"""With the overloads ``Tensor`` and ``Scalar``, of which the second has no other."""

LERP = {"self": "grad * (1 - weight)", "end": "grad * weight"}
SQUARES = "(self * self + other * other)"

OTHERS: Mapping[str, Mapping[str, Text]] = {
    "addcdiv.default": {
        "self": "grad",
        "tensor1": "grad * value / tensor2",
        "tensor2": "-grad * value * (tensor1 / tensor2 / tensor2)",
    },
    "addcmul.default": {
        "self": "grad",
        "tensor1": "grad * value * tensor2",
        "tensor2": "grad * value * tensor1",
    },
    "atan2.default": {
        "self": f"grad * (other / {SQUARES})",
        "other": f"-grad * (self / {SQUARES})",
    },
    "div.Tensor_mode": TWO["div"],
    "lerp.Scalar": LERP,
    "lerp.Tensor": {**LERP, "weight": "grad * (end - self)"},
    # Of two that are equal each gets half.
    "maximum.default": {
        "self": "where(self == other, grad / 2, where(self > other, grad, 0))",
        "other": "where(self == other, grad / 2, where(self < other, grad, 0))",
    },
    "minimum.default": {
        "self": "where(self == other, grad / 2, where(self < other, grad, 0))",
        "other": "where(self == other, grad / 2, where(self > other, grad, 0))",
    },
    "pow.Scalar": {"exponent": _power_of},
    "pow.Tensor_Scalar": {"self": _power},
    "where.ScalarOther": {"self": "where(condition, grad, 0)"},
    "where.ScalarSelf": {"other": "where(condition, 0, grad)"},
    "where.self": {"self": "where(condition, grad, 0)", "other": "where(condition, 0, grad)"},
}

DERIVATIVES: Mapping[str, Mapping[str, Text]] = {
    **{f"aten.{name}.default": {"self": text} for name, text in UNARY.items()},
    **{f"aten.{name}.Tensor": texts for name, texts in TWO.items()},
    **{f"aten.{name}.Scalar": {"self": texts["self"]} for name, texts in TWO.items()},
    **{f"aten.{name}": texts for name, texts in OTHERS.items()},
    # Scores are float32: of a cast the gradient is not rounded a second time.
    **{name: {"self": "grad", "a": "grad"} for name in CASTS},
}
"""By overload and parameter. A tensor operand that is not here has no derivative that we know."""

STEPS = ("ceil", "detach", "floor", "round", "sgn", "sign", "trunc")
"""Calls that pass no gradient on."""
FLAT = frozenset(
    [f"aten.{name}.default" for name in STEPS]
    + [name for name, rule in RULES.items() if rule.kind in (COMPARE, LOGIC, BITS)]
)
