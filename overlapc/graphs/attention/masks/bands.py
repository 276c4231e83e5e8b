"""Masks that keep a run of keys which moves with the row: windows, and causal over more keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Band:
    """Keys that rows keep, in the terms of ``AttentionSpec``."""

    before: int | None
    after: int | None
    align: str = "top_left"


def band_of(is_off: torch.Tensor, rows: object, keys: object) -> Band | None:
    """Return which keys rows keep that are not ``is_off[..., rows, keys]``; None where that is no
    band, or differs between heads, or a row keeps no key or every row all of them."""
    if not isinstance(rows, int) or not isinstance(keys, int) or is_off.ndim < 2:
        return None
    if tuple(is_off.shape[-2:]) != (rows, keys) or not rows or not keys:
        return None
    every = is_off.reshape(-1, rows, keys)
    kept = ~every[0]
    if not bool((every == every[:1]).all()) or not bool(kept.any(-1).all()):
        return None
    first = kept.to(torch.uint8).argmax(-1)
    last = keys - 1 - kept.flip(-1).to(torch.uint8).argmax(-1)
    if not bool((kept.sum(-1) == last - first + 1).all()):
        return None
    row = torch.arange(rows)
    low, high = _only((first - row)[first > 0]), _only((last - row)[last < keys - 1])
    least = torch.zeros_like(row) if low is None else (row + low).clamp(min=0)
    most = torch.full_like(row, keys - 1) if high is None else (row + high).clamp(max=keys - 1)
    is_band = bool((first == least).all() and (last == most).all())
    return _aligned(low, high, keys - rows) if is_band else None


def _only(distances: torch.Tensor) -> int | None:
    """The first of some distances of a key from its row; None where there are none."""
    return int(distances[0]) if len(distances) else None


def _aligned(low: int | None, high: int | None, offset: int) -> Band | None:
    """The band of distances from ``low`` to ``high``, counted from a key that lies in it."""
    if low is None and high is None:
        return None
    for align, own in (("top_left", 0), ("bottom_right", offset)):
        before = None if low is None else own - low
        after = None if high is None else high - own
        if min(before or 0, after or 0) >= 0:
            return Band(before, after, align)
    return None
