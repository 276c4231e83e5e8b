"""NCCL itself on one GPU: one rank for the path of launches, and two where NCCL allows them.

Nothing here is a time of a link: one rank sends nowhere, and two take turns on the device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.cuda import nccl

from benchmarks.gpu.device import DTYPE, device, shipped_target, sms
from benchmarks.gpu.gemm.chains import by_kernel
from benchmarks.gpu.timing import measure_on_device
from benchmarks.gpu.worker import WrongResult
from benchmarks.measuring.deadline import Deadline
from overlapc.planning.problem import Problem
from overlapc.planning.search import plan_rows
from overlapc.planning.tiles import MOST_SUMS, tiles_for
from overlapc.runtime import reference
from overlapc.runtime.measuring.kernel_trials import KernelTrial
from overlapc.runtime.signaled.waiting import DriverWait, driver_wait

OLDEST_OF_TWO_RANKS = (2, 30, 3)
"""The first NCCL that lets two ranks share a GPU, where a variable says so."""
TWO_RANKS = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_NVLS_ENABLE": "0", "NCCL_MAX_CTAS": "2"}
KINDS = ("all_reduce", "reduce_scatter", "all_to_all")
SIZES = (4096, 4096, 2048)
LEFT = 8
"""SMs for NCCL, where one rank has the device."""
TIMEOUT_SECONDS = 50.0
POLL_SECONDS = 0.05
RANK = (sys.executable, "-m", "benchmarks.gpu.gemm.nccl")
"""What runs a rank, before the path of a store and its number."""
CALLS = 20
BOUND = 1e-2
"""Of the relative error of a matrix of bfloat16."""


def trial_of(kind: str, ranks: int, group: dist.ProcessGroup, left: int) -> KernelTrial:
    """A problem whose collective is NCCL's."""
    m, n, k = SIZES
    problem = Problem(m, n, k, DTYPE, kind, ranks, order="gemm_first", kernel_sums=MOST_SUMS)
    return KernelTrial(
        problem, replace(shipped_target(), communication_sms=left), group, device()
    )  # fmt: skip


def signaled(trial: KernelTrial, groups: int = 4) -> Callable[[], torch.Tensor]:
    """Equal groups of whole bands, by a kernel; WrongResult where the library steps in."""
    problem = trial.problem
    tile = tiles_for(trial.target.architecture, DTYPE)[0]
    unit = problem.band_rows(tile)
    each = max(problem.m // unit // groups, 1) * unit
    count = min(groups, -(-problem.m // each))
    rows = (*[each] * (count - 1), problem.m - each * (count - 1))
    return by_kernel(trial, plan_rows(problem, trial.target, rows, tile=tile))


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The relative error of a matrix; WrongResult where it is no rounding."""
    error = ((found.double() - wanted).norm() / wanted.norm()).item()
    if not error <= BOUND:
        raise WrongResult(f"a relative error of {error:.3g}, above {BOUND}")
    return error


def one_rank(deadline: Deadline, kind: str) -> dict[str, Any]:
    """What the host does for a signaled op, beside a GEMM and a collective of c10d."""
    if not dist.is_nccl_available():
        return {"row": f"1 rank, {kind}", "skipped": "this torch has no NCCL"}
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("nccl", store=store, rank=0, world_size=1)
        try:
            return of_world(deadline, kind)
        finally:
            dist.destroy_process_group()


def of_world(deadline: Deadline, kind: str) -> dict[str, Any]:
    """The row of a world of one rank."""
    group = dist.group.WORLD
    assert group is not None
    trial = trial_of(kind, 1, group, LEFT)
    run = signaled(trial)
    a, b = trial.operands
    wanted = a.double() @ b.double()
    error = max(error_of(run(), wanted) for _ in range(3))

    def plain() -> None:
        c = a @ b
        if kind == "all_reduce":
            dist.all_reduce(c)
        elif kind == "reduce_scatter":
            dist.reduce_scatter_tensor(torch.empty_like(c), c)
        else:
            dist.all_to_all_single(torch.empty_like(c), c)

    samples = measure_on_device({"plain": plain, "signaled": run}, deadline, seed=1)
    return {
        "row": f"1 rank, {kind}",
        "NCCL": version(),
        "relative error": error,
        "waits by": "the driver" if isinstance(driver_wait(device()), DriverWait) else "a kernel",
        "host us, torch.mm and c10d": host_microseconds(plain),
        "host us, signaled in 4 groups": host_microseconds(run),
        "device ms, torch.mm and c10d": 1e3 * samples.median("plain"),
        "device ms, signaled": 1e3 * samples.median("signaled"),
    }


def host_microseconds(run: Callable[[], object]) -> float:
    """What a call takes on the host, the median of some that wait for nothing."""
    taken = []
    for _ in range(CALLS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return 1e6 * sorted(taken)[CALLS // 2]


def version() -> str:
    """Of the NCCL that is loaded, as far as torch tells."""
    return ".".join(map(str, nccl.version()))


def two_ranks(deadline: Deadline) -> dict[str, Any]:
    """Values of the signaled ops on two ranks of this GPU; no times, for they take turns."""
    if not dist.is_nccl_available():
        return {"row": "2 ranks", "skipped": "this torch has no NCCL"}
    if tuple(nccl.version()) < OLDEST_OF_TWO_RANKS:
        oldest = ".".join(map(str, OLDEST_OF_TWO_RANKS))
        why = f"NCCL {version()} lets no two ranks share a GPU; from {oldest} on it does"
        return {"row": "2 ranks", "skipped": why}
    with tempfile.TemporaryDirectory() as folder:
        found = [json.loads(said.splitlines()[-1]) for said in run_ranks(Path(folder))]
    errors = {f"relative error, {kind}": max(its[kind] for its in found) for kind in KINDS}
    return {"row": "2 ranks", "NCCL": version(), **errors}


def run_ranks(folder: Path) -> list[str]:
    """What both ranks say, which keep what they need in a folder; RuntimeError where one fails, of
    which the other may never learn, or where they do not end."""
    outs, logs = ([folder / f"{name} {rank}" for rank in range(2)] for name in ("out", "log"))
    ranks = []
    for number, (out, log) in enumerate(zip(outs, logs, strict=True)):
        command = [*RANK, str(folder / "store"), str(number)]
        with out.open("w") as told, log.open("w") as logged:  # no pipe that could be full
            environment = {**os.environ, **TWO_RANKS}
            ranks.append(subprocess.Popen(command, env=environment, stdout=told, stderr=logged))
    ends = Deadline.after(TIMEOUT_SECONDS)
    try:
        while True:
            codes = [rank.poll() for rank in ranks]
            if None not in codes or any(codes) or not ends.left():
                break
            time.sleep(POLL_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for number, (code, log) in enumerate(zip(codes, logs, strict=True)):
        if code:
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"rank {number} ended with exit code {code}: {said}")
    if None in codes:
        said = logs[codes.index(None)].read_text(errors="replace")[-2000:]
        raise RuntimeError(f"rank {codes.index(None)} did not end in {TIMEOUT_SECONDS} s: {said}")
    return [out.read_text() for out in outs]


def rank(store: str, me: int) -> dict[str, float]:
    """By collective, the error of one of the two ranks; gloo, on the host, is its oracle."""
    file = FileStore(store, 2)
    dist.init_process_group("gloo", store=file, rank=me, world_size=2)
    group = dist.new_group([0, 1], backend="nccl")
    assert isinstance(group, dist.ProcessGroup)
    # Both have to be resident with their collectives.
    left = sms() // 2 + 2
    found = {}
    for kind in KINDS:
        torch.manual_seed(me)
        trial = trial_of(kind, 2, group, left)
        run = signaled(trial)
        (wanted,) = reference.chain(trial.spec(), [operand.cpu() for operand in trial.operands])
        errors = []
        for _ in range(3):
            result = run()
            torch.cuda.synchronize()
            errors.append(error_of(result.cpu(), wanted.double()))
        found[kind] = max(errors)
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    print(json.dumps(rank(sys.argv[1], int(sys.argv[2]))))
