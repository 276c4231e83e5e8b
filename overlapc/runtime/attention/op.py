"""The op that stands in a compiled graph in place of an attention.

It is self-contained: tensors, one canonical spec, and the site it counts under. Where a generated
kernel can run it does, else the same is computed by torch's own ops.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.runtime.attention.kernels import as_wide, is_decode, run_kernel, whole_keys
from overlapc.runtime.attention.library import attention_by_fused, why_not_fused
from overlapc.runtime.attention.program import attention_by_torch
from overlapc.runtime.attention.running_phi import running_phi
from overlapc.runtime.attention.trained_rows import forward_by_fused
from overlapc.runtime.kernel_attempts import KernelAttempts
from overlapc.runtime.ops import calls_of

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor[] inputs, Tensor? lengths, float[]? phi,"
    " Tensor? sinks, str spec, str site, Tensor? k_scale=None, Tensor? v_scale=None)"
    " -> (Tensor, Tensor)"
)
"""Operands as ``AttentionKernel`` takes them, but φ of each head as numbers; ``lengths`` may be
int32[1], of all sequences alike. Keys and values may be float8 beside a wider query, with scales,
float32[1] or [heads of keys], of both or of none. Where keys have fewer columns than queries each
begins with its value, and what is given is the rest. Neither has a gradient. Gives the result
[batch, heads, rows, value_dim], rows before heads in memory, and the logarithms of sums,
[batch, heads, rows] of the spec's ``sums_dtype``, or [0] where it wants none."""

BY_TORCH = "torch"
"""What calls are counted under that no kernel computed."""

_library = torch.library.Library("overlapc", "FRAGMENT")
_redone: dict[tuple[str, torch.device], torch.Tensor] = {}
_kernels = KernelAttempts("attention")


def redone_of(site: str) -> int | None:
    """Return how many rows of a site's calls in this process were computed a second time; waits
    for the device. None where no kernel counts them, or none has run."""
    if not calls_of(site).keys() - {BY_TORCH}:
        return None
    counts = [int(count.item()) for (own, _), count in _redone.items() if own == site]
    return sum(counts) if counts else None


def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: list[torch.Tensor],
    lengths: torch.Tensor | None,
    phi: list[float] | None,
    sinks: torch.Tensor | None,
    spec: str,
    site: str,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    read = AttentionSpec.parse(spec)
    calls = calls_of(site)
    lengths = lengths_of_each(lengths, query.shape[0])

    def launch() -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = _results(read, query, value)
        way = run_kernel(
            read, query, key, value, out, lse if read.lse else None, inputs=inputs,
            lengths=lengths, sinks=sinks, redone=counter_of(site, query.device),
            phi=_phi_of(read, phi, site, query), k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip
        calls[way] += 1
        return out, lse

    # The kernel of few rows is another one.
    kernel = (spec, str(query.device), is_decode(read, query.shape[2]))
    found = _kernels.run(kernel, query, launch)
    if found is not None:
        return found
    calls[BY_TORCH] += 1
    key, value = as_wide(key, k_scale, query.dtype), as_wide(value, v_scale, query.dtype)
    key = whole_keys(read, key, value)
    if not read.lse and not why_not_fused(read, query.device.type):
        out = attention_by_fused(read, query, key, value, inputs, lengths, sinks)
        return out, _results(read, query, value)[1]
    if read.lse and lengths is None:
        trained = forward_by_fused(read, query, key, value, inputs, sinks)
        if trained is not None:
            out, lse = trained
            return out, lse.to(getattr(torch, read.sums_dtype))
    out, lse = attention_by_torch(read, query, key, value, inputs, lengths, sinks)
    return out, lse if read.lse else lse.new_empty(0)


def _phi_of(
    spec: AttentionSpec, phi: list[float] | None, site: str, query: torch.Tensor
) -> torch.Tensor | None:
    if spec.moves_phi:
        return running_phi(site, query.device, query.shape[1])
    return phi_on(tuple(phi), query.device) if phi else None


def lengths_of_each(lengths: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """Return lengths as kernels take them, int32[batch]; given may be one, of all sequences."""
    if lengths is None or lengths.shape[0] != 1:
        return lengths
    return lengths.expand(batch)


def _results(
    spec: AttentionSpec, query: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, rows, _ = query.shape
    # Rows before heads, as whoever reads a result of attention wants it.
    out = query.new_empty((batch, rows, heads, value.shape[-1])).transpose(1, 2)
    sums = (batch, heads, rows) if spec.lse else (0,)
    return out, query.new_empty(sums, dtype=getattr(torch, spec.sums_dtype))


def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: Any,
    lengths: Any,
    phi: Any,
    sinks: Any,
    spec: str,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _results(AttentionSpec.parse(spec), query, value)


def counter_of(site: str, device: torch.device) -> torch.Tensor:
    """Return where a site's rows that are computed a second time are counted, int64[1]: a
    site whose rows are all redone passes 2^31 within hours.

    Made when the site is compiled: what a first call makes under CUDA graphs is memory of theirs.
    """
    if (site, device) not in _redone:
        _redone[site, device] = torch.zeros(1, dtype=torch.int64, device=device)
    return _redone[site, device]


@lru_cache(maxsize=4096)
def phi_on(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return φ of each head, float32 on a device. Made as counters are: when a site is compiled."""
    with unset_fake_temporarily():
        return torch.tensor(numbers, dtype=torch.float32, device=device)


_library.define(f"attention{SCHEMA}", tags=(torch.Tag.needs_fixed_stride_order,))
_library.impl("attention", _run, "CompositeExplicitAutograd")
torch.library.register_fake("overlapc::attention", _fake, lib=_library)
