"""The φ of each head that a site's calls leave to later ones, on the device."""

from __future__ import annotations

import torch

from overlapc.runtime.signaled import group_tables

_phi: dict[tuple[str, torch.device, int], torch.Tensor] = {}


def running_phi(site: str, device: torch.device, heads: int) -> torch.Tensor:
    """Return float32[query heads], in nats, zeros before the first call.

    Made when the site is compiled, and apart: launches and replays of CUDA graphs find what those
    before them left in it, and no pool of graphs takes it back.
    """
    key = site, device, heads
    if key not in _phi:
        _phi[key] = group_tables.apart(
            lambda: torch.zeros(heads, dtype=torch.float32, device=device)
        )
    return _phi[key]
