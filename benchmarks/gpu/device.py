"""What GPU benchmarks know of the device: its name, and the target that plans are made for."""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.worker import Skipped
from benchmarks.measuring.deadline import Deadline
from overlapc.calibration import SHIPPED_FOR
from overlapc.planning.target import Target
from overlapc.runtime.machine import architecture_of

DEFAULT_TARGET = "h100-nvlink"
"""Where none is shipped for a device, which then lends its SMs and architecture alone."""
DTYPE = "bfloat16"


def device() -> torch.device:
    """The current GPU."""
    return torch.device("cuda", torch.cuda.current_device())


def architecture() -> str:
    """As ``sm_<number>``, or ``gfx<name>`` on AMD."""
    return architecture_of(device())


def require_clock() -> None:
    """Leave out a row whose kernels read the time, where they cannot: Skipped on AMD.

    The clock of kernels ticks at another rate there on each family of devices.
    """
    if torch.version.hip:
        raise Skipped("its kernels read the time by NVIDIA's %globaltimer")


def sms() -> int:
    """Multiprocessors of the current GPU."""
    return torch.cuda.get_device_properties(device()).multi_processor_count


def shipped_target() -> Target:
    """The shipped target for a device of this name, with this one's SMs and architecture."""
    name = torch.cuda.get_device_properties(device()).name
    known = next((its for part, its in SHIPPED_FOR.items() if part in name), DEFAULT_TARGET)
    target = Target.load(known)
    gemm = tuple(replace(rates, resident=sms()) for rates in target.gemm)
    return replace(target, architecture=architecture(), gemm=gemm)


def describe(deadline: Deadline) -> dict[str, Any]:
    """The device, the versions, and the target that plans begin with."""
    import triton

    return {
        "device": f"{torch.cuda.get_device_properties(device()).name}, {sms()} SMs",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__},"
        f" triton {triton.__version__}, {_toolkit()}",
        "target": f"{shipped_target().name} for {architecture()}, with what this run measured",
        "shipped": shipped_target(),
    }


def _toolkit() -> str:
    return f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
