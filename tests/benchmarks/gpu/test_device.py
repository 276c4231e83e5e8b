"""Devices of AMD: what they are called, and which rows leave them out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import device as gpu_device
from benchmarks.gpu.gemm.emulated_link import LINKS
from benchmarks.gpu.worker import Row, attempt
from benchmarks.measuring.deadline import Deadline

CLOCKED = [
    Row("t", "signals", "benchmarks.gpu.gemm.rates.signals", {"by": "kernel"}),
    Row("t", "a link", "tests.benchmarks.gpu.test_device.sends"),
]


def sends(deadline: Deadline) -> dict[str, Any]:
    LINKS["NVLink-like"](2).move("all_reduce", torch.zeros(8), torch.zeros(8))
    return {}


@pytest.mark.parametrize("row", CLOCKED, ids=lambda row: row.name)
def test_rows_that_read_the_time_on_the_device_are_left_out_on_amd(row, monkeypatch):
    assert "error" in attempt(row)  # for there is no GPU here at all
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert attempt(row) == {
        "row": row.name, "skipped": "its kernels read the time by NVIDIA's %globaltimer"
    }  # fmt: skip


def test_amds_devices_are_called_as_kernels_for_them_are(monkeypatch):
    found = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert gpu_device.architecture() == "gfx942"
