"""A mask in which one truth is repeated for all elements, in the interpreter.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from overlapc.codegen.interpreting import correct_interpreter

correct_interpreter()


@triton.jit
def kept_while(x: tl.tensor, out: tl.tensor, n: tl.tensor, SIZE: tl.constexpr) -> None:
    """Numbers at even places, as long as one is less than ``n``."""
    place = tl.arange(0, SIZE)
    mask = (place % 2 == 0) & (n > 1)
    tl.static_assert(mask.dtype == tl.int1)
    tl.store(out + place, tl.load(x + place, mask=mask, other=-1.0))


def dtype_of_mask() -> str:
    """What NumPy keeps the truths as that are repeated."""
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    one = TensorHandle(torch.ones(1, dtype=torch.bool).numpy(), tl.int32)  # as comparisons give it
    kind = tl.block_type(tl.int32, [4])
    return str(interpreter_builder.create_splat(kind, one).data.dtype)


def kept(n: int) -> list[float]:
    """Of 0, 1, 2, 3."""
    out = torch.full((4,), float("nan"))
    kept_while[(1,)](torch.arange(4.0), out, n, SIZE=4)
    return out.tolist()
