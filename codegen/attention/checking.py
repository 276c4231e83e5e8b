"""Whether tensors are what the spec of an attention promises, in the words of an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.epilogue import Input
from overlapc.codegen.kernel import INT32_LIMIT, name_of

if TYPE_CHECKING:
    from torch import Tensor

WIDEST_TILE = 256
"""Rows of any tile; a power of two above every one that is built."""


@dataclass(frozen=True)
class Sizes:
    """Of one call."""

    batch: int
    heads: int
    """Of queries."""
    rows: int
    keys: int


INPUT_SHAPES: Mapping[str, Callable[[Sizes], tuple[int, int]]] = {
    "matrix": lambda sizes: (sizes.rows, sizes.keys),
    "column": lambda sizes: (sizes.rows, 1),
    "vector": lambda sizes: (1, sizes.keys),
    "one": lambda sizes: (1, 1),
}
"""The last two sizes of an input of scores, by its shape."""


def sizes_of(q: Tensor, k: Tensor, v: Tensor) -> Sizes:
    """Of operands, as far as they have four dimensions."""
    if any(side.dim() != 4 for side in (q, k, v)):
        return Sizes(0, 0, 0, 0)
    return Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def misfit(
    spec: AttentionSpec,
    sizes: Sizes,
    sides: tuple[Tensor, Tensor, Tensor, Tensor],
    inputs: Sequence[Tensor],
    lengths: Tensor | None,
    phi: Tensor | None,
    sinks: Tensor | None,
    lse: Tensor | None,
    redone: Tensor | None,
) -> str:
    """Why a kernel of ``spec`` cannot take these; empty if it can. ``sides`` are q, k, v, out."""
    named = {"lengths": lengths, "phi": phi, "sinks": sinks, "lse": lse, "redone": redone}
    return (
        misfit_of_sides(spec, sizes, sides)
        or misfit_of_others(spec, sizes, inputs, lengths, phi, sinks, lse, redone)
        or misfit_of_devices(sides[0], named, inputs)
    )


def misfit_of_devices(
    q: Tensor, named: Mapping[str, Tensor | None], inputs: Sequence[Tensor] = ()
) -> str:
    """Why these cannot be read where ``q`` is; empty if they can."""
    given = [*named.items(), *(("an input", tensor) for tensor in inputs)]
    for name, tensor in given:
        if tensor is not None and tensor.device != q.device:
            return f"{name} is on {tensor.device}, not {q.device}"
    return ""


def misfit_of_others(
    spec: AttentionSpec,
    sizes: Sizes,
    inputs: Sequence[Tensor],
    lengths: Tensor | None,
    phi: Tensor | None,
    sinks: Tensor | None,
    lse: Tensor | None,
    redone: Tensor | None,
) -> str:
    """The same of what every kernel of attention takes beside q, k, v and out."""
    heads = (sizes.heads,)
    return (
        _misfit_of_inputs(spec, sizes, inputs)
        or misfit_of("lengths", lengths, (sizes.batch,), ("int32",), spec.lengths)
        or misfit_of("phi", phi, heads, ("float32",), spec.takes_phi)
        or misfit_of("sinks", sinks, heads, ("float32", "float16", "bfloat16"), spec.sinks)
        or misfit_of(
            "lse", lse, (sizes.batch, *heads, sizes.rows), ("float32", "float64"), lse is not None
        )
        or misfit_of("redone", redone, (1,), ("int64", "int32"), not spec.is_online)
    )


def misfit_of_sides(
    spec: AttentionSpec, sizes: Sizes, sides: tuple[Tensor, Tensor, Tensor, Tensor]
) -> str:
    batch, rows, keys = sizes.batch, sizes.rows, sizes.keys
    kept = sizes.heads // spec.groups
    if any(side.dim() != 4 for side in sides):
        return "an operand has not four dimensions"
    wanted = {
        "q": (batch, kept * spec.groups, rows, spec.head_dim),
        "k": (batch, kept, keys, spec.head_dim),
        "v": (batch, kept, keys, spec.value_dim),
        "out": (batch, sizes.heads, rows, spec.value_dim),
    }
    for (name, shape), side in zip(wanted.items(), sides, strict=True):
        if tuple(side.shape) != shape:
            return f"{name} is {list(side.shape)}, not {list(shape)}"
        if name_of(side) != spec.dtype:
            return f"{name} is of {name_of(side)}, not {spec.dtype}"
        if side.device != sides[0].device:
            return f"{name} is on {side.device}, not {sides[0].device}"
        steps = (abs(step) for step in side.stride()[2:])
        if sum(WIDEST_TILE * step for step in steps) >= INT32_LIMIT:
            return f"a tile of {name} with strides {side.stride()} does not fit int32"
    return ""


def _misfit_of_inputs(spec: AttentionSpec, sizes: Sizes, inputs: Sequence[Tensor]) -> str:
    """Why these are not the inputs of the spec's program; empty if they are."""
    if len(inputs) != len(spec.inputs):
        return f"scores take {len(spec.inputs)} inputs, not {len(inputs)}"
    for item, tensor in zip(spec.inputs, inputs, strict=True):
        if name_of(tensor) != item.dtype or not _broadcasts(item, tensor, sizes):
            return f"an input is {name_of(tensor)}{list(tensor.shape)}, not the promised {item}"
    return ""


def _broadcasts(item: Input, tensor: Tensor, sizes: Sizes) -> bool:
    if item.shape == "scalar":
        return tensor.dim() == 0
    full = (sizes.batch, sizes.heads, *INPUT_SHAPES[item.shape](sizes))
    own = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
    return 0 < tensor.dim() <= 4 and all(a in (1, b) for a, b in zip(own, full, strict=True))


def misfit_of(
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...],
    dtypes: tuple[str, ...],
    is_wanted: bool,
) -> str:
    """Why a tensor is not what is promised, where it is wanted; empty if it is."""
    if not is_wanted:
        return "" if tensor is None or name == "redone" else f"{name} is given, and not promised"
    if tensor is None:
        return f"{name} is promised, and not given"
    if tuple(tensor.shape) != shape or name_of(tensor) not in dtypes:
        return f"{name} is {name_of(tensor)}{list(tensor.shape)}, not {dtypes[0]}{list(shape)}"
    is_strided = name == "lengths"  # which kernels take so
    return "" if is_strided or tensor.is_contiguous() else f"{name} is not contiguous"
