"""NCCL's rows on gloo; run as a script, one of its ranks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.gemm import nccl as gpu_nccl
from overlapc.runtime.signaled import communicators
from tests.benchmarks.gpu.pretended import LEFT, pretended_gpu
from tests.runtime.signaled import pretended

ROOT, NCCL = Path(__file__).parents[3], "benchmarks.gpu.gemm.nccl"


@contextmanager
def gloo_for_nccl() -> Iterator[None]:
    """Let NCCL's rows run on gloo, on small matrices."""
    new_group, init = dist.new_group, dist.init_process_group
    rank = [sys.executable, __file__]
    with (
        pretended_gpu(),
        mock.patch.object(communicators, "beside", pretended.beside),
        mock.patch.object(communicators, "why_no_streams", return_value=""),
        mock.patch.object(gpu_nccl.nccl, "version", return_value=(2, 30, 3)),
        mock.patch.object(dist, "is_nccl_available", return_value=True),
        mock.patch.object(dist, "init_process_group", lambda backend, **its: init("gloo", **its)),
        mock.patch.object(dist, "new_group", lambda ranks, backend: new_group(ranks)),
        mock.patch.multiple(gpu_nccl, SIZES=(1040, 40, 64), CALLS=2, LEFT=LEFT, RANK=rank),
    ):
        yield


def one_rank(kind: str) -> dict[str, Any]:
    """The row of one rank."""
    with gloo_for_nccl():
        return gpu_worker.attempt(gpu_worker.Row("", "", f"{NCCL}.one_rank", {"kind": kind}))


def two_ranks() -> dict[str, Any]:
    """The row of two ranks, each in a process that runs this file."""
    with gloo_for_nccl(), mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        return gpu_worker.attempt(gpu_worker.Row("", "", f"{NCCL}.two_ranks"))


def main() -> None:
    """One of the two ranks."""
    assert set(gpu_nccl.TWO_RANKS.items()) <= set(os.environ.items())
    with gloo_for_nccl():
        sys.stdout.write(json.dumps(gpu_nccl.rank(sys.argv[1], int(sys.argv[2]))) + "\n")


if __name__ == "__main__":
    main()
