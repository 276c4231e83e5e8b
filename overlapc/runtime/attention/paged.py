"""Attention over a cache that lies in pages, as a function to call: no graph of torch spells pages.

Servers keep keys and values in pages of fixed size and a table that says which belong to a
sequence. On GPUs the decode kernel looks pages up in its loop; elsewhere they are gathered.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.errors import KernelError
from overlapc.planning.attention.own import OWN, policy_of
from overlapc.planning.attention.policy import RUNNING
from overlapc.runtime.attention.kernels import decode_way, is_decode, run_decode, whole_keys
from overlapc.runtime.attention.library import attention_by_fused
from overlapc.runtime.attention.op import BY_TORCH
from overlapc.runtime.attention.paged_checking import check_operands, check_pages, pages_seen
from overlapc.runtime.attention.program import attention_by_torch
from overlapc.runtime.attention.refused_gradients import refuse_gradients
from overlapc.runtime.kernel_attempts import KernelAttempts
from overlapc.runtime.ops import calls_of

CHOICES = tuple(choice for choice in OWN if choice != RUNNING)
"""A running φ belongs to a site of a graph, and here is none."""
SITE = "paged_attention"
"""What calls count under."""
SCHEMA = (
    "(Tensor query, Tensor keys, Tensor values, Tensor table, Tensor lengths, Tensor? k_scale,"
    " Tensor? v_scale, str spec, str cache) -> Tensor"
)

_library = torch.library.Library("overlapc", "FRAGMENT")
_kernels = KernelAttempts("attention over pages", raises_misfits=True)


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    softmax: str = "unified",
) -> torch.Tensor:
    """Attend from the last rows of each sequence to the keys up to each row's own.

    ``query`` is [batch, groups * heads, rows, dim], ``keys`` [pages, heads, page, dim] and
    ``values`` [pages, heads, page, value_dim], of any strides; ``table`` int32[batch, most pages]
    says which pages hold a sequence, in the order of its keys, and what stands behind those of its
    length, or before those of every row's window, is not read; ``lengths`` is int32[batch], the
    row's own keys among them. A page holds a power of two of keys, 16 to 256. ``scale`` is 1 /
    sqrt(dim) unless given; ``window`` is how many keys before its own a row sees. Where keys have
    fewer columns than queries, each begins with its value and is given without that (latent
    attention). Keys and values may be float8_e4m3fn beside a wider query, with ``k_scale`` of whole
    keys and ``v_scale``, float32[1] or [heads]. ``softmax`` is "unified" or "online", as the
    option. Gives [batch, groups * heads, rows, value_dim], zeros in rows that see no key, as
    torch's attention over no keys; has no gradient. May be called in what torch.compile traces, and
    captured in a CUDA graph after a first call.
    KernelError on operands that are none of this; that the table has every page of a sequence, and
    the cache each of these, is checked on processors only.
    """
    if softmax not in CHOICES:
        raise KernelError(
            f"No attention over pages has softmax {softmax!r}.",
            where="paged_attention",
            remedy=f"choose one of {', '.join(CHOICES)}",
        )
    if not (window is None or (_is_number(window, Integral) and window >= 0)):
        raise KernelError(
            f"A row cannot see {window!r} keys before its own.",
            where="paged_attention, window",
            remedy="give a whole number from 0 on, or None where it sees all of them",
        )
    if not (scale is None or (_is_number(scale, Real) and math.isfinite(scale))):
        raise KernelError(
            f"Scores cannot be multiplied by {scale!r}.",
            where="paged_attention, scale",
            remedy="give a finite number, or None for 1 / sqrt(dim)",
        )
    # Slices of wider tables are common, and kernels read rows of them without a stride.
    table, lengths, k_scale, v_scale = (_dense(x) for x in (table, lengths, k_scale, v_scale))
    check_operands(query, keys, values, table, lengths, {"k_scale": k_scale, "v_scale": v_scale})
    cache = Cache(
        "" if keys.dtype == query.dtype else _name(keys.dtype),
        k_scale is not None,
        keys.shape[2],
        shares_values=keys.shape[3] < query.shape[3],
    )
    spec = AttentionSpec(
        _name(query.dtype),
        query.shape[-1],
        values.shape[-1],
        groups=query.shape[1] // keys.shape[1],
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        before=None if window is None else int(window),
        after=0,
        align="bottom_right",
        lengths=True,
        softmax=policy_of(softmax, _name(query.dtype)),
        dead="zero",
        lse=False,
        precision="tf32x3" if query.dtype == torch.float32 and not torch.version.hip else "ieee",
    )
    cache.check(spec)
    return torch.ops.overlapc.paged_attention(
        query, keys, values, table, lengths, k_scale, v_scale, str(spec), str(cache)
    )


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _run(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    spec: str,
    cache: str,
) -> torch.Tensor:
    read, lies = AttentionSpec.parse(spec), Cache.parse(cache)
    calls = calls_of(SITE)
    reach = None if read.before is None else query.shape[2] + read.before
    if not query.numel():
        return _fake(query, keys, values)
    if query.device.type == "cpu":  # on a GPU to ask for values would wait for it
        check_pages(table, lengths, lies.page, keys.shape[0], reach)

    def launch() -> torch.Tensor:
        out = _fake(query, keys, values)
        # What a first call made and kept would be memory of a CUDA graph: nobody reads the count,
        # nor does a memset make it zero.
        redone = None if read.is_online else query.new_empty(1, dtype=torch.int64)
        splits = run_decode(
            read, lies, query, keys, values, out, None, redone=redone, lengths=lengths,
            table=table, k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip
        calls[decode_way(read, splits, query.shape[2])] += 1
        return out

    if is_decode(read, query.shape[2]):
        found = _kernels.run((spec, cache, str(query.device)), query, launch)
        if found is not None:
            return found
    calls[BY_TORCH] += 1
    k, v = (
        _gathered(side, table, lengths, factor, reach).to(query.dtype)
        for side, factor in ((keys, k_scale), (values, v_scale))
    )
    if lies.shares_values:
        own = _gathered(values, table, lengths, k_scale, reach).to(query.dtype)
        k = whole_keys(read, k, own)
    if read.head_dim == read.value_dim:
        return attention_by_fused(read, query, k, v, (), lengths)
    return attention_by_torch(read, query, k, v, (), lengths, None)[0]


def _gathered(
    side: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    factor: torch.Tensor | None,
    reach: int | None,
) -> torch.Tensor:
    """``[batch, heads, keys, dim]`` of every sequence, zeros after its length and where
    ``pages_seen`` says that no row sees a page."""
    page, most = side.shape[2], table.shape[1]
    if not side.shape[0]:  # all sequences are empty
        side = side.new_zeros(1, *side.shape[1:])
    seen = pages_seen(table, lengths, page, reach)
    used = torch.arange(most * page, device=table.device) < lengths[:, None]
    used = used & seen.repeat_interleave(page, 1)
    found = side[table.masked_fill(~seen, 0)].transpose(1, 2).flatten(2, 3)
    if factor is not None:
        found = found.float() * factor.reshape(1, -1, 1, 1)
    return torch.where(used[:, None, :, None], found, torch.zeros((), dtype=found.dtype))


def _fake(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *rest: object
) -> torch.Tensor:
    batch, heads, rows, _ = query.shape
    return query.new_empty((batch, rows, heads, values.shape[-1])).transpose(1, 2)


def _dense(tensor: Any) -> Any:
    return tensor.contiguous() if isinstance(tensor, torch.Tensor) else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_library.define(f"paged_attention{SCHEMA}", tags=(torch.Tag.needs_fixed_stride_order,))
_library.impl("paged_attention", _run, "CompositeExplicitAutograd")
torch.library.register_fake("overlapc::paged_attention", _fake, lib=_library)
refuse_gradients(
    "paged_attention",
    _library,
    "Attention over pages has no gradient.",
    "call it under torch.no_grad(), or train with scaled_dot_product_attention",
)
