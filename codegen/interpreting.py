"""Triton's interpreter with the arithmetic of devices, where its own differs.

It cuts where casts to bfloat16 round, multiplies the bits of bfloat16 as integers, and rounds the
product of ``fma``. That of
Triton 3.6 also makes no index of an array of one number, where NumPy is 2.4 or newer, and that of
3.9 refuses masks in which one truth is repeated for all, for it repeats it as a number.
"""

from __future__ import annotations

from typing import Any

LARGEST = {"fp8e4nv": 448.0, "fp8e5": 57344.0}
"""What too large numbers become on devices when they are cast."""


def correct_interpreter() -> None:
    """Put it right for the rest of this process; does so once. Needs TRITON_INTERPRET."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

    builder: Any = InterpreterBuilder
    if hasattr(builder, "_overlapc_corrected"):
        return
    builder._overlapc_corrected = True
    _correct_indices(interpreter)
    cast, dot, splat = builder.cast_impl, builder.create_dot, builder.create_splat
    dtypes = {
        "bf16": torch.bfloat16,
        "fp8e4nv": torch.float8_e4m3fn,
        "fp8e5": torch.float8_e5m2,
    }

    def widened(handle: Any) -> Any:
        dtype = dtypes.get(handle.dtype.scalar.name)
        if dtype is None:
            return handle.data
        bits = np.ascontiguousarray(handle.data)
        return torch.from_numpy(bits.copy()).view(dtype).float().numpy()

    def corrected_cast(self: Any, source: Any, target: Any, *_: Any) -> Any:
        name = target.scalar.name
        if not {name, source.dtype.scalar.name} & set(dtypes):
            return cast(self, source, target)
        numbers = widened(source)
        if name not in dtypes:
            return TensorHandle(numbers.astype(_get_np_dtype(target)), target.scalar)
        largest = LARGEST.get(name, np.inf)
        numbers = np.clip(numbers.astype(np.float32), -largest, largest)
        bits = torch.from_numpy(np.ascontiguousarray(numbers)).to(dtypes[name])
        unsigned = torch.uint16 if name == "bf16" else torch.uint8
        return TensorHandle(bits.view(unsigned).numpy(), target.scalar)

    def corrected_dot(self: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        if a.dtype.scalar.name not in dtypes:
            return dot(self, a, b, total, *options)
        product = np.matmul(widened(a), widened(b), dtype=np.float32)
        return TensorHandle(product + total.data, total.dtype.scalar)

    def corrected_splat(self: Any, kind: Any, source: Any) -> Any:
        if source.data.dtype != np.bool_:
            return splat(self, kind, source)
        return TensorHandle(np.full(kind.shape, source.data.item()), tl.int1)

    def corrected_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        wide = x.data.astype(np.float64) * y.data + z.data
        return TensorHandle(wide.astype(x.data.dtype), x.dtype.scalar)

    builder.cast_impl = corrected_cast
    builder.create_fp_to_fp = corrected_cast
    builder.create_dot = corrected_dot
    builder.create_splat = corrected_splat
    builder.create_fma = corrected_fma


def _correct_indices(interpreter: Any) -> None:
    """Let one number be an index, in every array that holds it."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
