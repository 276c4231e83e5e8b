"""Dimension 1 dealt out to ranks: ``[units, ranks * x, ...]`` and ``[ranks * units, x, ...]``."""

from __future__ import annotations

import torch


def parts(tensor: torch.Tensor, ranks: int) -> torch.Tensor:
    """Return ``[units, ranks * x, ...]`` as a view ``[ranks, units, x, ...]``."""
    width = tensor.shape[1] // ranks
    return tensor.unflatten(1, (ranks, width)).movedim(1, 0)


def pack(tensor: torch.Tensor, ranks: int) -> torch.Tensor:
    """Return ``[units, ranks * x, ...]`` as contiguous ``[ranks * units, x, ...]``."""
    return parts(tensor, ranks).contiguous().flatten(0, 1)


def unpack(tensor: torch.Tensor, ranks: int) -> torch.Tensor:
    """Return what ``pack`` was given, contiguous."""
    units = tensor.shape[0] // ranks
    whole = tensor.unflatten(0, (ranks, units)).movedim(0, 1)
    return whole.contiguous().flatten(1, 2)
