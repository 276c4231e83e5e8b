"""PyTorch's type promotion among the dtypes that a generated kernel handles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FP8 = ("float8_e4m3fn", "float8_e5m2")
HALVES = ("float16", "bfloat16")
FLOATS = ("float32", *HALVES, *FP8)
BOOL = "bool"

TRITON_NAMES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8e4nv",
    "float8_e5m2": "float8e5",
}
"""How ``triton.language`` calls a dtype."""


class CannotLower(Exception):
    """Ends an epilogue; its text is the reason, without a full stop."""


@dataclass(frozen=True)
class Value:
    """A value inside the generated function.

    Floating values are held as float32 that a cast to ``dtype`` keeps as they are; bool as int1.
    """

    text: str
    dtype: str
    shape: str = "matrix"
    """One of ``epilogue.SHAPES``."""

    @property
    def is_scalar(self) -> bool:
        """Whether torch sees no dimension, which weighs less in promotion."""
        return self.shape == "scalar"


def common_dtype(values: Sequence[Value]) -> str:
    """The dtype that torch computes in for these operands; numbers of Python never change it.

    Raises ``CannotLower`` where torch has none, or where it is no dtype of a kernel.
    """
    strong = [value.dtype for value in values if not value.is_scalar]
    weak = [value.dtype for value in values if value.is_scalar]
    dtype = _widest(strong)
    # A tensor of no dimension counts only where it is of a higher category.
    return _widest([dtype, *weak]) if dtype in (BOOL, "") else dtype


def _widest(dtypes: Sequence[str]) -> str:
    floats = {dtype for dtype in dtypes if dtype not in (BOOL, "")}
    if not floats:
        return BOOL if dtypes else ""
    if len(floats) > 1 and floats & set(FP8):
        raise CannotLower(f"torch promotes {' and '.join(sorted(floats))} to nothing")
    return floats.pop() if len(floats) == 1 else "float32"
