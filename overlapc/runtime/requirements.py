"""What a device and a group must have for the ``signaled`` schedule."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.distributed as dist

from overlapc.errors import GroupError
from overlapc.runtime.groups import backend_name

STREAM_BACKENDS = frozenset({"nccl"})
"""Whose collectives run in the order of the current stream; RCCL is called nccl as well."""
OLDEST_CAPABILITY = (8, 0)
"""Of CUDA devices: the first for which kernels are generated, with asynchronous copies."""


def why_not_signaled(device: torch.device, group: dist.ProcessGroup) -> str:
    """Why no collective of this group can wait for signals of this device; empty if one can."""
    if device.type != "cuda":
        return f"its operands are on {device}, and only GPUs signal"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.version.hip and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        return f"no kernel is generated for sm_{major}{minor}, only from sm_80 on"
    try:
        backend = backend_name(group, device.type)
    except GroupError as error:
        return error.what
    if backend not in STREAM_BACKENDS:
        return f"collectives of {backend} do not run on streams"
    return ""
