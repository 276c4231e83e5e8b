"""What a device and a group must have for the ``signaled`` schedule."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.distributed as dist

from overlapc.errors import GroupError
from overlapc.planning.tiles import why_not_served
from overlapc.runtime.machine import architecture_of
from overlapc.runtime.ranks.groups import backend_name

STREAM_BACKENDS = frozenset({"nccl"})
"""Whose collectives run in the order of the current stream; RCCL is called nccl as well."""
OLDEST_CAPABILITY = (8, 0)
"""Of CUDA devices: the first for which kernels are generated, with asynchronous copies."""


def why_no_streams(device: torch.device, group: dist.ProcessGroup) -> str:
    """Why no collective of this group can wait on a stream of this device; empty if one can."""
    if device.type != "cuda":
        return f"Its operands are on {device}, and only GPUs signal."
    try:
        backend = backend_name(group, device.type)
    except GroupError as error:
        return error.what
    if backend not in STREAM_BACKENDS:
        return f"Collectives of {backend} do not run on streams."
    return ""


def why_no_kernel(device: torch.device, architecture: str) -> str:
    """Why no kernel that is generated for ``architecture`` runs on a GPU; empty if one does."""
    if find_spec("triton") is None:
        return "Triton is not installed."
    is_nvidia = architecture.startswith("sm_")
    if is_nvidia == bool(torch.version.hip):
        return f"The target plans for {architecture}, of which {device} is not."
    if not is_nvidia:
        why = why_not_served(architecture_of(device))
        return f"No kernel {why}." if why else ""
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST_CAPABILITY:
        return f"No kernel is generated for sm_{major}{minor}, only from sm_80 on."
    if 10 * major + minor < int(architecture.removeprefix("sm_")):
        return f"The target plans for {architecture}, and {device} is sm_{major}{minor}."
    return ""
