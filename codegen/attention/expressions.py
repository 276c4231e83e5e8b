"""Arithmetic that is written as text, as ATen calls on values of a program."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from overlapc.codegen.epilogue import Ref

Emit = Callable[..., Ref]
"""``emit(op, *arguments)`` appends a call, and gives what refers to its value."""

COMPARISONS = {ast.Gt: "gt", ast.GtE: "ge", ast.Lt: "lt", ast.LtE: "le", ast.Eq: "eq"}
UNARY = ("cos", "erf", "exp", "sigmoid", "sign", "sin", "tanh")
"""Functions of one argument that a text may call, beside ``pow`` and ``where``."""


def calls_of_text(text: str, names: Mapping[str, Any], emit: Emit) -> Any:
    """Emit the calls of an expression; return what refers to its value, or a number.

    ``names`` are values (``Ref``) and numbers. Of numbers alone nothing is emitted; times one, too.
    """

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(number):
                return number
            case ast.Name(name):
                return names[name]
            case ast.UnaryOp(ast.USub(), operand):
                return _negative(value(operand), emit)
            case ast.BinOp(left, operator, right):
                return _arithmetic(operator, value(left), value(right), emit)
            case ast.Compare(left, [operator], [right]):
                return _two(COMPARISONS[type(operator)], value(left), value(right), emit)
            case ast.Call(ast.Name("where"), [condition, left, right]):
                return _where(value(condition), value(left), value(right), emit)
            case ast.Call(ast.Name("pow"), [base, exponent]):
                return emit("aten.pow.Tensor_Scalar", value(base), value(exponent))
            case ast.Call(ast.Name(name), [operand]) if name in UNARY:
                return emit(f"aten.{name}.default", value(operand))
        raise AssertionError(f"{ast.unparse(node)!r} of {text!r} is no arithmetic")

    return value(_parsed(text))


@cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _negative(operand: Any, emit: Emit) -> Any:
    return emit("aten.neg.default", operand) if isinstance(operand, Ref) else -operand


def _arithmetic(operator: ast.operator, left: Any, right: Any, emit: Emit) -> Any:
    has_tensors = isinstance(left, Ref), isinstance(right, Ref)
    match operator:
        case ast.Add():
            return _sum(left, right, emit) if any(has_tensors) else left + right
        case ast.Sub() if not any(has_tensors):
            return left - right
        case ast.Sub() if not has_tensors[0]:
            return emit("aten.rsub.Scalar", right, left)
        case ast.Sub():
            return _two("sub", left, right, emit)
        case ast.Mult():
            return _product(left, right, emit) if any(has_tensors) else left * right
        case ast.Div() if not any(has_tensors):
            return left / right
        case ast.Div() if not has_tensors[0]:
            return _product(left, emit("aten.reciprocal.default", right), emit)
        case ast.Div():
            return _two("div", left, right, emit)
    raise AssertionError(f"{operator} is no arithmetic")


def _sum(left: Any, right: Any, emit: Emit) -> Ref:
    return _two("add", *((left, right) if isinstance(left, Ref) else (right, left)), emit)


def _product(left: Any, right: Any, emit: Emit) -> Ref:
    tensor, other = (left, right) if isinstance(left, Ref) else (right, left)
    return tensor if not isinstance(other, Ref) and other == 1 else _two("mul", tensor, other, emit)


def _two(name: str, left: Ref, right: Any, emit: Emit) -> Ref:
    return emit(f"aten.{name}.{'Tensor' if isinstance(right, Ref) else 'Scalar'}", left, right)


def _where(condition: Ref, left: Any, right: Any, emit: Emit) -> Ref:
    ways = {(True, True): "self", (True, False): "ScalarOther", (False, True): "ScalarSelf"}
    return emit(f"aten.where.{ways[isinstance(left, Ref), isinstance(right, Ref)]}",
                condition, left, right)  # fmt: skip
