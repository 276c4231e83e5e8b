"""The part of linear layers on tiny ones."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch

from benchmarks.gpu import linear as gpu_linear
from benchmarks.gpu import run as gpu
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.report import Page
from overlapc.runtime import machine
from overlapc.runtime.linear import trials as linear_trials
from overlapc.runtime.measuring import clocks
from tests.benchmarks.gpu.pretended import SMS, Inline, pretended_gpu


def dry_run(out: str, first: int | None = None) -> list[str]:
    """Run the part of linear layers on two tiny ones; the names of the files that it wrote."""
    shape = gpu_linear.Shape
    layers = {"pair": shape((20,), 136, weights=2)}
    layers["joint"] = shape((40, 24, 24), 264, is_normed=True)
    calls = gpu_timing.MOST_CALLS  # as on a GPU: what is timed by events is short here
    with (
        pretended_gpu(),
        mock.patch.object(gpu_timing, "MOST_CALLS", calls),
        mock.patch.multiple(gpu_linear, LAYERS=layers, COUNTS=(1, 8), CHECK_SIZES=((40, 300),),
                            READ_BYTES=1 << 12, TINY=(1, 8, 16), CALLS=1, ROUNDS=1),
        mock.patch.multiple(clocks, FEWEST_ROUNDS=6, MOST_ROUNDS=6, LEAST_CALLS=1),
        mock.patch.multiple(linear_trials, COLD_BYTES=1, on_device=clocks.on_host),
        mock.patch.multiple(machine, architecture_of=lambda device: "sm_90",
                            multiprocessors=lambda device: SMS),
        mock.patch.object(torch, "compile", lambda function, **_: function),
    ):  # fmt: skip
        gpu.measure("linear", Page(Path(out), "linear"), Inline(first), minutes=9)
    return sorted(path.name for path in Path(out).iterdir())
