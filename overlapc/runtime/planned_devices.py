"""Which device a graph is planned for whose tensors are on none."""

from __future__ import annotations

import torch


def planned_device(device: str) -> str:
    """Return the type of device to plan for: tensors on ``meta`` are planned for the accelerator of
    this machine, or its processor."""
    if device != "meta":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def planned_on(device: torch.device) -> torch.device:
    """Return the device to plan for, as of ``planned_device``."""
    return torch.device(planned_device("meta")) if device.type == "meta" else device
