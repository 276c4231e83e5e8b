"""What fails on a device: an absent one has to fail at it too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from overlapc.codegen import GemmSpec, build, kernel
from overlapc.codegen.selfcheck import Case
from overlapc.planning.tiles import Tile, tiles_for
from tests.device.absent import absent_h200

SIZES = (256, 256, 128)
SPEC = GemmSpec("bfloat16", "bfloat16", **tiles_for("sm_90", "bfloat16")[0].built)
BY_TMA = replace(SPEC, loads="descriptors")


def tight_memory(folder: str) -> None:
    """A kernel that needs more shared memory than an SM has."""
    huge = replace(BY_TMA, **Tile(128, 256, 128, 4, 8).built)
    with absent_h200(Path(folder)):
        Case.random(build(huge), SIZES, "cuda").run(8)


def odd_address(folder: str) -> None:
    """An operand that the TMA unit cannot read, which the check before the launch overlooks."""
    with absent_h200(Path(folder)), mock.patch.object(kernel, "fits_tma", return_value=True):
        case = Case.random(build(BY_TMA), SIZES, "cuda")
        a = torch.empty(256 * 128 + 1, dtype=torch.bfloat16, device="cuda")[1:].view(256, 128)
        replace(case, a=a).run(8)


def cold_capture(folder: str) -> None:
    """A kernel that has not run before a capture."""
    with absent_h200(Path(folder)):
        case = Case.random(build(SPEC), SIZES, "cuda")
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            case.run(8)


def host_waits_in_capture(folder: str) -> None:
    """A number that is read of the device in a capture."""
    with absent_h200(Path(folder)):
        x = torch.ones(1, device="cuda")
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            x.item()
