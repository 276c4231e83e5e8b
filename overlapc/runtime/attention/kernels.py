"""Which generated kernel computes a call of attention, by its rows, and its launch.

Few rows of queries, as in decode, take the decode kernel: all rows and query heads that share a
head of keys are one CTA's, and several CTAs share the keys. More rows take a CTA a block of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from overlapc.codegen.attention.cache import NARROW, Cache, leading
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.decode_choice import DecodeWay, choose_decode, way_of
from overlapc.codegen.attention.descriptors import fits_tma
from overlapc.codegen.attention.kernel import MOST_DIM, build_attention
from overlapc.codegen.attention.spec import DTYPES, AttentionSpec
from overlapc.codegen.attention.spec import MOST_DIM as WIDEST
from overlapc.codegen.attention.tiles import AttentionTile, tile_for
from overlapc.errors import KernelError
from overlapc.planning.attention.decode_splits import MOST_ROWS, decode_in
from overlapc.planning.attention.tile_names import PLANNED, TRIED
from overlapc.planning.tiles import why_not_served
from overlapc.runtime import machine
from overlapc.runtime.attention.meeting import counters

INTERPRETED = AttentionTile(32, 32, 4, 1)
INTERPRETED_DECODE = AttentionTile(16, 16, 4, 1)
INTERPRETED_SMS, INTERPRETED_KEY_BYTES = 8, 1 << 14
"""Multiprocessors that the interpreter is taken to have, and bytes of a key and its value: enough
for few keys to be shared."""


def is_decode(spec: AttentionSpec, rows: int) -> bool:
    """Return whether the decode kernel computes so many rows of queries.

    A single one of however many heads is: blocks of them read the keys, and not each.
    """
    is_wide = max(spec.head_dim, spec.value_dim) > MOST_DIM
    return rows == 1 or rows * spec.groups <= MOST_ROWS or is_wide


def run_kernel(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
    phi: torch.Tensor | None,
    sinks: torch.Tensor | None,
    redone: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> str:
    """Launch the kernel of a call on the current stream; return what the call counts under.

    Arguments are as of ``AttentionKernel``, but keys and values may be of a dtype of ``NARROW``,
    and keys the rest of what begins with values: the decode kernel reads them as they are, for the
    other they are made whole. KernelError where they do not fit, TritonError where it cannot be
    built.
    """
    if not is_decode(spec, query.shape[2]):
        key, value = as_wide(key, k_scale, query.dtype), as_wide(value, v_scale, query.dtype)
        key = whole_keys(spec, key, value)
        kernel = build_attention(spec, tile_on(spec, key, value))
        kernel(query, key, value, out, inputs=inputs, lengths=lengths, phi=phi, sinks=sinks,
               lse=lse, redone=redone)  # fmt: skip
        return spec.softmax
    own = str(key.dtype).removeprefix("torch.")
    cache = Cache(
        own if own in NARROW else "",
        k_scale is not None,
        shares_values=key.shape[3] < spec.head_dim,
    )
    splits = run_decode(
        spec, cache, query, key, value, out, lse, inputs=inputs, lengths=lengths, phi=phi,
        sinks=sinks, redone=redone, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip
    return decode_way(spec, splits, query.shape[2])


def as_wide(side: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return keys or values ``[batch, heads, keys, dim]``, as they are scaled, in ``dtype``."""
    if scale is not None:
        side = side.float() * scale.reshape(-1, 1, 1)
    return side.to(dtype)


def whole_keys(spec: AttentionSpec, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return keys, of which ``key`` may be the rest: then they begin with the values."""
    return key if key.shape[-1] == spec.head_dim else torch.cat((value, key), -1)


def may_share(head_dim: int, value_dim: int) -> bool:
    """Return whether the decode kernel takes values of so many columns from where keys begin."""
    return value_dim == leading(head_dim) < head_dim


def decode_way(spec: AttentionSpec, splits: int, rows: int) -> str:
    """Return what calls of the decode kernel count under."""
    return f"{spec.softmax}, {decode_in(splits, rows)}"


def run_decode(
    spec: AttentionSpec,
    cache: Cache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    redone: torch.Tensor | None,
    inputs: Sequence[torch.Tensor] = (),
    lengths: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    phi: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> int:
    """Launch the decode kernel; return how many CTAs may share the keys of one block of rows.

    Arguments are as of ``DecodeKernel``. The memory of partial sums is made at every call: what a
    call kept would be of the pool of a CUDA graph. Counters are those of ``meeting``.
    """
    device = query.device
    if device.type != "cuda":
        interprets()
    pairs = query.shape[0] * (query.shape[1] // spec.groups)
    keys = key.shape[2] if table is None else table.shape[1] * cache.page
    way = decode_on(spec, cache, query.shape[2], pairs, keys, device)
    kernel, splits = build_decode(spec, cache, way.tile), way.splits.count
    kernel(
        query, key, value, out, splits=splits, workspace=kernel.workspace(query, splits, counters),
        inputs=inputs, lengths=lengths, table=table, k_scale=k_scale, v_scale=v_scale, phi=phi,
        sinks=sinks, lse=lse, redone=redone,
    )  # fmt: skip
    return splits


def decode_for(
    dtype: str,
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    device: torch.device,
    *,
    shares_values: bool = False,
) -> DecodeWay | None:
    """Return how a call on operands of these shapes is computed; None where it is no decode.

    Keys are whole, where they share values as well.
    """
    groups, dims = query[1] // max(key[1], 1), (key[3], value[3])
    is_known = dtype in DTYPES and 0 < min(dims) <= max(dims) <= WIDEST
    if not is_known or device.type not in ("cpu", "cuda") or why_not_served(architecture(device)):
        return None
    spec = AttentionSpec(dtype, key[3], value[3], groups=max(groups, 1))
    if not is_decode(spec, query[2]):
        return None
    cache = Cache(shares_values=shares_values)
    return decode_on(spec, cache, query[2], query[0] * key[1], key[2], device)


def decode_on(
    spec: AttentionSpec,
    cache: Cache,
    rows: int,
    pairs: int,
    keys: int,
    device: torch.device,
) -> DecodeWay:
    """Return how a device, an interpreted one among them, attends with ``rows`` rows of queries to
    ``keys`` of each of ``pairs`` sequences and heads.

    Keys may be those of a buffer that is longer than what it holds: fewer CTAs take part then,
    which the kernel decides by the length.
    """
    sms = multiprocessors(device)
    if device.type != "cuda":
        return way_of(spec, INTERPRETED_DECODE, rows, pairs, keys, sms, INTERPRETED_KEY_BYTES)
    return choose_decode(
        spec, cache, rows, architecture(device), pairs=pairs, keys=keys, multiprocessors=sms
    )


def tile_on(spec: AttentionSpec, key: torch.Tensor, value: torch.Tensor) -> AttentionTile:
    """Return the tile of the kernel of many rows for keys and values as they lie on their device,
    interpreted ones among them."""
    if key.device.type != "cuda":
        interprets()
        return INTERPRETED
    is_aligned = fits_tma(key) and fits_tma(value)
    return tile_for(spec, architecture(key.device), is_aligned=is_aligned)


def tiles_beside(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    shares_values: bool = False,
) -> list[str]:
    """Return by which names of ``TRIED`` a call would take another tile than unasked; keys are
    whole, where they share values as well. None where no kernel computes it."""
    cache, pairs = Cache(shares_values=shares_values), query.shape[0] * key.shape[1]

    def taken(name: str) -> AttentionTile:
        its = replace(spec, tile=name)
        if not is_decode(spec, query.shape[2]):
            return tile_on(its, key, value)
        return decode_on(its, cache, query.shape[2], pairs, key.shape[2], key.device).tile

    try:
        return [name for name in TRIED if taken(name) != taken(PLANNED)]
    except KernelError:
        return []


def interprets() -> None:
    """Put Triton's interpreter right in this process."""
    from overlapc.codegen.interpreting import correct_interpreter

    correct_interpreter()


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> str:
    """Return ``sm_<number>`` or ``gfx<name>`` of a GPU, from memory."""
    return machine.architecture_of(device)


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Return the multiprocessors of a device, or of the interpreter."""
    return machine.multiprocessors(device) if device.type == "cuda" else INTERPRETED_SMS
