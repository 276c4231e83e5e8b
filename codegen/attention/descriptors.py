"""Keys and values as the TMA unit of sm_90 and later reads them: what it can read, and how told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from overlapc.planning.kernel_tiles import TMA_ALIGNMENT

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 2**40
"""Of a stride, which is less."""


def fits_tma(side: Tensor) -> bool:
    """Whether the unit can read ``[batch, heads, keys, dim]``: elements of a row follow one
    another, rows begin at multiples of 16 bytes, and none is there twice."""
    item = side.element_size()
    steps = _steps(side)
    return (
        side.numel() > 0
        and side.data_ptr() % TMA_ALIGNMENT == 0
        and (side.stride(3) == 1 or side.shape[3] == 1)
        and all(0 < step * item < MOST_BYTES for step in steps)
        and all(step * item % TMA_ALIGNMENT == 0 for step in steps)
    )


def descriptor(side: Tensor, rows: int, columns: int) -> Any:
    """Of ``[batch, heads, keys, dim]`` that fits: a ``TensorDescriptor`` of blocks of ``rows`` keys
    of one head, with zeros up to ``columns`` and beyond the last key."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(side, list(side.shape), [*_steps(side), 1], [1, 1, rows, columns])


def _steps(side: Tensor) -> list[int]:
    """Strides but the last; of what is there but once torch may say any, and one that fits is
    said."""
    once = TMA_ALIGNMENT // side.element_size()
    strides = zip(side.shape[:3], side.stride()[:3], strict=True)
    return [step if size > 1 else once for size, step in strides]
