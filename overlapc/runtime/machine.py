"""Which machine this is, for tables of measurements that hold for no other."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch

from overlapc.planning.tables import Machine
from overlapc.sources import fingerprint_of_sources


def this_machine(device: str) -> Machine:
    """This process's device of a type; tensors on ``meta`` are taken for the accelerator's."""
    if device == "meta":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Machine(device, f"{found.name}, {found.multi_processor_count} SMs", _versions())
    name = f"{_processor()}, {torch.get_num_threads()} threads"
    return Machine(device, name, _versions())


def architecture_of(device: torch.device) -> str:
    """For which kernels are generated there, as targets name it; empty where none are."""
    if device.type != "cuda":
        return ""
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName
        return name.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a device; one where it has none."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def l2_bytes_of(device: torch.device) -> int:
    """Bytes of the last cache before memory, as the device says; 0 on AMD's, which tell of the
    cache of one die."""
    return 0 if torch.version.hip else torch.cuda.get_device_properties(device).L2_cache_size


@lru_cache(maxsize=1)
def _versions() -> str:
    try:
        triton = f"triton {version('triton')}"
    except PackageNotFoundError:
        triton = "no triton"
    return f"torch {torch.__version__}, {triton}, overlapc {fingerprint_of_sources()}"


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            named = [line for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return named[0].partition(":")[2].strip() if named else platform.machine()
