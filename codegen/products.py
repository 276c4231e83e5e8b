"""The GEMMs of ATen: what each makes of the float32 product of A and B."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from overlapc.codegen.epilogue import Dtype, Ref
from overlapc.codegen.pointwise import scaled
from overlapc.codegen.promotion import CannotLower, Value

Load = Callable[[Ref], Value]
"""Reads a tensor that the GEMM takes beside A and B."""


@dataclass(frozen=True)
class Product:
    """What is stored of one GEMM."""

    text: str
    """In float32, before it is rounded to ``dtype``."""
    dtype: str


@dataclass(frozen=True)
class Gemm:
    """One overload."""

    a: str
    """The parameter that is A."""
    b: str
    """The parameter that is B."""
    write: Callable[[Mapping[str, Any], str, Load, str], Product]
    """From the arguments, the dtype of A and B, a reader of the other tensors, and what the product
    is called."""


def _mm(given: Mapping[str, Any], dtype: str, load: Load, product: str) -> Product:
    return Product(product, _dtype(given, dtype))


def _addmm(given: Mapping[str, Any], dtype: str, load: Load, product: str) -> Product:
    text = scaled(product, given["alpha"])
    if given["beta"] != 0:  # of a bias that does not count not even NaN counts
        text = f"{text} + {scaled(load(given['self']).text, given['beta'])}"
    return Product(text, _dtype(given, dtype))


def _scaled_mm(given: Mapping[str, Any], dtype: str, load: Load, product: str) -> Product:
    """Scales of the whole tensors, or of each row of A and each column of B."""
    if given["scale_result"] is not None:
        raise CannotLower("a scale of the result is not lowered")
    scales = load(given["scale_a"]), load(given["scale_b"])
    shapes = tuple(scale.shape for scale in scales)
    if shapes[0] not in ("one", "scalar", "column") or shapes[1] not in ("one", "scalar", "vector"):
        raise CannotLower(f"scales of shapes {' and '.join(shapes)} are not lowered")
    text = f"{product} * {scales[0].text} * {scales[1].text}"
    if given["bias"] is not None:
        text = f"{text} + {load(given['bias']).text}"
    return Product(text, _dtype(given, dtype))


def _dtype(given: Mapping[str, Any], dtype: str) -> str:
    out = given.get("out_dtype")
    return out.name if isinstance(out, Dtype) else dtype


GEMMS = {
    "aten.mm.default": Gemm("self", "mat2", _mm),
    "aten.mm.dtype": Gemm("self", "mat2", _mm),
    "aten.addmm.default": Gemm("mat1", "mat2", _addmm),
    "aten.addmm.dtype": Gemm("mat1", "mat2", _addmm),
    "aten._scaled_mm.default": Gemm("self", "mat2", _scaled_mm),
}
"""By overload."""
