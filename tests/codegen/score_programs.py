"""Programs between Q @ K^T and softmax that models have, and one of every shape of an input."""

from __future__ import annotations

import math
from typing import Any

from overlapc.codegen.attention.scores import PRODUCT
from overlapc.codegen.epilogue import Call, Epilogue, Input, Ref


def program(inputs: str, *calls: tuple[Any, ...]) -> str:
    """Of inputs ``shape:dtype`` in a line, and calls ``(op, arguments...)``.

    Arguments ``%n`` are values, of which the scaled product is the first, ``@n`` inputs.
    """
    kinds = {"%": "value", "@": "input"}

    def argument(given: Any) -> Any:
        return Ref(kinds[given[0]], int(given[1:])) if isinstance(given, str) else given

    made = (Call(f"aten.{op}", tuple(map(argument, given))) for op, *given in calls)
    read = (Input(*item.split(":")) for item in inputs.split())
    return str(Epilogue(tuple(read), (PRODUCT, *made)))


SOFT_CAP = program("", ("div.Tensor", "%0", 1.5), ("tanh.default", "%1"), ("mul.Tensor", "%2", 1.5))
ALIBI = program("vector:float32", ("add.Tensor", "%0", "@0"))
ADDED = program("matrix:float32", ("add.Tensor", "%0", "@0"))
KEPT = program("matrix:bool", ("where.ScalarOther", "@0", "%0", -math.inf))
KEPT_FINITE = program("matrix:bool", ("where.ScalarOther", "@0", "%0", -3.4e38))
TURNED = program(
    "matrix:bool matrix:bool",
    ("where.ScalarOther", "@0", "%0", -3.4e38),
    ("where.ScalarOther", "@1", "%1", -3e38),
    ("mul.Tensor", "%2", -1.0),
)
"""Masks that are turned: what they had hidden has all weight, that of the first one before that of
the second."""
OF_TWO_MASKS = program(
    "matrix:bool",
    ("gt.Scalar", "%0", -1e9),
    ("where.ScalarSelf", "%1", -3e38, "%0"),
    ("where.ScalarOther", "@0", "%2", -3.4e38),
)
"""Rows of masks alone: those of the higher number have the weight."""
LEAST_BY_SCORE = program("", ("gt.Scalar", "%0", -1e9), ("where.ScalarSelf", "%1", -3.4e38, "%0"))
"""Rows of a mask alone, of no input."""
LOW = program("matrix:bool", ("where.ScalarOther", "@0", "%0", -(2.0**127)))
"""A number that float32 has, as a sink may be."""
HIGH = program("", ("gt.Scalar", "%0", -1e9), ("where.ScalarSelf", "%1", 2.0**126, "%0"))
"""Rows of one number alone, of which the logarithm of the sum is far above zero."""
KEPT_BY_SCORE = program("", ("le.Scalar", "%0", 2.2), ("where.ScalarSelf", "%1", -math.inf, "%0"))
EVERY_SHAPE = program(
    "matrix:bfloat16 column:float32 vector:bool one:float16 scalar:float32",
    ("mul.Tensor", "%0", "@4"),
    ("add.Tensor", "%1", "@0"),
    ("mul.Tensor", "%2", "@1"),
    ("add.Tensor", "%3", "@3"),
    ("where.ScalarSelf", "@2", -2.0, "%4"),
)
