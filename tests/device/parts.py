"""Parts of the GPU benchmark on an absent H200, at the sizes that are measured there."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.gpu import run as gpu
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.attention import checks as gpu_attention_checks
from benchmarks.gpu.gemm import checks as gpu_checks
from benchmarks.gpu.gemm import links as gpu_links
from benchmarks.gpu.gemm import rates as gpu_rates
from benchmarks.gpu.report import Page
from benchmarks.measuring.paired import Samples
from overlapc.codegen.linear.check import LinearCase
from overlapc.codegen.selfcheck import Case
from overlapc.runtime.linear import trials as linear_trials
from overlapc.runtime.measuring import clocks
from tests.device.absent import absent_h200


def modelled(runs: Any, deadline: Any, seed: int) -> Samples:
    """Run everything once; seconds as cost models have them, which those of an absent device are
    not."""
    seconds = {}
    for name, run in runs.items():
        run()
        who, *sizes = name.split()
        if len(sizes) == 1:  # bytes of a collective
            seconds[name] = (1e-6 + 1e-11 * int(sizes[0]),)
        else:  # waves, and their depth
            wave = 1e-6 + int(sizes[1]) * (2e-9 if who == "ours" else 1e-9)
            seconds[name] = (5e-6 + int(sizes[0]) * wave,)
    return Samples(seconds)


class Inline:
    """Runs rows here, of every table the first ``most``; says what each compiled and launched."""

    def __init__(self, device: Any, most: int) -> None:
        self.device, self.most, self.found = device, most, list[dict[str, Any]]()
        self.tried = Counter[str]()

    def run(self, row: gpu_worker.Row, limit: float) -> dict[str, Any]:
        self.tried[row.table] += 1
        if self.tried[row.table] > self.most:
            return {"row": row.name, "skipped": "left out"}
        before = self._counts()
        found = gpu_worker.attempt(row)
        spent = {name: after - before[name] for name, after in self._counts().items()}
        self.found.append({"table": row.table, **spent, **found})
        return found

    def _counts(self) -> dict[str, float]:
        driver = self.device.driver
        return {"compiled": driver.loaded(), "launched": driver.launched(),
                "tensor maps": driver.mapped(), "waits of the driver": self.device.waits,
                "spent": time.perf_counter()}  # fmt: skip


@contextmanager
def without_values() -> Iterator[None]:
    """Leave out of checks what depends on the content of tensors, and of timing its repetitions."""
    checks = gpu_attention_checks
    cases = {
        kind: (check, {name: replace(case, is_redone=False) for name, case in its.items()})
        for kind, (check, its) in checks.CHECKS.items()
    }
    sees = gpu_checks._sees_early_bands
    with ExitStack() as stack:
        for each in (
            mock.patch.object(gpu_checks, "_sees_early_bands", lambda *its: sees(*its) or True),
            mock.patch.object(Case, "is_counted", True),
            mock.patch.object(LinearCase, "error", return_value=0.0),
            mock.patch.dict(checks.CHECKS, cases),
            mock.patch.object(gpu_rates, "measure_on_device", modelled),
            mock.patch.object(gpu_links, "measure_on_device", modelled),
            mock.patch.multiple(gpu_timing, WARM_UPS=1, MOST_ROUNDS=1, MOST_CALLS=1),
            mock.patch.object(torch.backends.cuda, "preferred_blas_library", return_value=None),
            mock.patch.multiple(clocks, FEWEST_ROUNDS=6, MOST_ROUNDS=6),
            mock.patch.object(linear_trials, "MOST_COPIES", 2),
            mock.patch.object(torch, "compile", lambda function, **_: function),
            mock.patch.object(dist, "is_nccl_available", return_value=False),
        ):
            stack.enter_context(each)
        yield


def run_part(part: str, out: Path, most: int) -> list[dict[str, Any]]:
    """Run rows of a part; what each of those that were tried gave, compiled and launched."""
    with absent_h200(out) as device, without_values():
        runner = Inline(device, most)
        gpu.measure(part, Page(out, part), runner, minutes=600)
    return runner.found


def main(part: str, out: Path, most: int) -> None:
    """Run rows of a part, write what they gave and end the process: with 1 where some failed."""
    sys.stdout.write("The GPU is absent: no value is computed, and times are a cost model's.\n")
    sys.stdout.flush()
    found = run_part(part, out, most)
    (out / "found.json").write_text(json.dumps(found, default=str))
    failed = [row for row in found if "error" in row]
    sys.stdout.write(f"{len(found)} rows tried, {len(failed)} failed\n")
    sys.exit("\n".join(map(str, failed)) or 0)
