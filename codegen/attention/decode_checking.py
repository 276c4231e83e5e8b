"""Whether tensors are what a decode kernel was promised, in the words of an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.checking import (
    Sizes,
    misfit_of,
    misfit_of_devices,
    misfit_of_others,
)
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.kernel import INT32_LIMIT, name_of

if TYPE_CHECKING:
    from torch import Tensor

WIDEST_STEP = 256
"""Keys of any step or page."""


def decode_misfit(
    spec: AttentionSpec,
    cache: Cache,
    sizes: Sizes,
    sides: tuple[Tensor, Tensor, Tensor, Tensor],
    inputs: Sequence[Tensor],
    lengths: Tensor | None,
    phi: Tensor | None,
    sinks: Tensor | None,
    lse: Tensor | None,
    redone: Tensor | None,
    table: Tensor | None,
    scales: tuple[Tensor | None, Tensor | None],
) -> str:
    """Why a kernel cannot take these; empty if it can. ``sides`` are q, k, v, out."""
    pages = (sizes.batch, -1 if table is None else table.shape[-1])
    named = {
        "table": table, "k_scale": scales[0], "v_scale": scales[1], "lengths": lengths, "phi": phi,
        "sinks": sinks, "lse": lse, "redone": redone,
    }  # fmt: skip
    return (
        _misfit_of_sides(spec, cache, sizes, sides)
        or _misfit_of_scales(cache, sizes.heads // spec.groups, scales)
        or misfit_of("table", table, pages, ("int32",), cache.page > 0)
        or misfit_of_others(spec, sizes, inputs, lengths, phi, sinks, lse, redone)
        or misfit_of_devices(sides[0], named, inputs)
    )


def _misfit_of_sides(
    spec: AttentionSpec, cache: Cache, sizes: Sizes, sides: tuple[Tensor, Tensor, Tensor, Tensor]
) -> str:
    if any(side.dim() != 4 for side in sides):
        return "an operand has not four dimensions"
    kept = sizes.heads // spec.groups
    # Pages are counted by nobody: a table may name any that there is.
    lead = (sides[1].shape[0], kept, cache.page) if cache.page else (sizes.batch, kept, sizes.keys)
    is_rest = cache.shares_values and sides[1].shape[3] != spec.head_dim
    of_key = spec.head_dim - spec.value_dim * is_rest
    wanted = {
        "q": (spec.dtype, (sizes.batch, kept * spec.groups, sizes.rows, spec.head_dim)),
        "k": (cache.of(spec), (*lead, of_key)),
        "v": (cache.of(spec), (*lead, spec.value_dim)),
        "out": (spec.dtype, (sizes.batch, sizes.heads, sizes.rows, spec.value_dim)),
    }
    for (name, (dtype, shape)), side in zip(wanted.items(), sides, strict=True):
        if tuple(side.shape) != shape:
            return f"{name} is {list(side.shape)}, not {list(shape)}"
        if name_of(side) != dtype:
            return f"{name} is of {name_of(side)}, not {dtype}"
        if side.device != sides[0].device:
            return f"{name} is on {side.device}, not {sides[0].device}"
        step = WIDEST_STEP * abs(side.stride(2)) + side.shape[3] * abs(side.stride(3))
        if step >= INT32_LIMIT:
            return f"a tile of {name} with strides {side.stride()} does not fit int32"
    _, k, v, _ = sides
    is_view = v.stride() == k.stride() and v.data_ptr() == k.data_ptr()
    if cache.shares_values and not is_rest and not is_view:
        return "v is not the beginning of k, which it shares"
    return ""


def misfit_of_memory(name: str, memory: Tensor, dtype: str, least: int, q: Tensor) -> str:
    """Why a part of a workspace does not serve launches on ``q``; empty if it does."""
    if name_of(memory) != dtype:
        return f"{name} of the workspace are {name_of(memory)}, not {dtype}"
    if not memory.is_contiguous():
        return f"{name} of the workspace are not contiguous"
    if memory.numel() < least:
        return f"{memory.numel()} {name} of the workspace are not the {least} that are needed"
    return misfit_of_devices(q, {f"{name} of the workspace": memory})


def _misfit_of_scales(cache: Cache, heads: int, scales: tuple[Tensor | None, Tensor | None]) -> str:
    sizes = [scale.numel() for scale in scales if scale is not None]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        return "k_scale and v_scale are not of one size"
    shape = (1,) if sizes[:1] == [1] else (heads,)
    for name, scale in zip(("k_scale", "v_scale"), scales, strict=True):
        why = misfit_of(name, scale, shape, ("float32",), cache.scales)
        if why:
            return why
    return ""
