"""Products of tf32 as matrix units make them, which Triton's interpreter makes in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from triton.runtime.interpreter import TensorHandle, interpreter_builder

LOST = 13
"""Bits of a float32 that tf32 has not."""


@contextmanager
def rounding_to_tf32() -> Iterator[None]:
    """Cut operands of float32 off where a product is asked for in tf32."""
    builder: Any = interpreter_builder
    dot = builder.create_dot

    def cut(handle: Any) -> Any:
        bits = np.ascontiguousarray(handle.data).view(np.uint32)
        # What is no number has its first bits set: it stays none.
        return TensorHandle((bits >> LOST << LOST).view(np.float32), handle.dtype.scalar)

    def rounding_dot(a: Any, b: Any, total: Any, precision: Any, *rest: Any) -> Any:
        if precision.name == "TF32" and a.dtype.scalar.name == "fp32":
            a, b = cut(a), cut(b)
        return dot(a, b, total, precision, *rest)

    with patch.object(builder, "create_dot", rounding_dot):
        yield
