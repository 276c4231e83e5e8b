"""The part of GEMMs on tiny shapes, and a link that leaves out what it has to send."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu import run as gpu
from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.gemm import part as gpu_gemm
from benchmarks.gpu.gemm.emulated_link import EmulatedLink
from benchmarks.gpu.gemm.shapes import Shape
from benchmarks.gpu.report import Page
from tests.benchmarks.gpu.pretended import Inline, pretended_gpu

SHAPE = Shape("tiny", 2, 272, 56, 64)
"""Of several bands of the smaller tiles, the last with tiles that are not whole."""


def dry_run(out: str, first: int | None = None, shapes: int = 1) -> list[str]:
    """Run the part; the names of the files that it wrote."""
    rows = gpu_gemm.rows
    tiny = [SHAPE] * shapes
    with (
        pretended_gpu(),
        mock.patch.object(gpu_gemm, "rows", lambda done, shipped: rows(done, shipped, tiny)),
    ):
        gpu.measure("gemm", Page(Path(out), "gemm"), Inline(first), minutes=9)
    return sorted(path.name for path in Path(out).iterdir())


def a_lossy_link_is_seen(collective: str, by_columns: bool) -> list[dict[str, Any]]:
    """The row of a staged path, right and where the collective leaves its last elements out."""
    row = gpu_worker.Row(
        "", "", "benchmarks.gpu.gemm.checks.staged",
        {"collective": collective, "by_columns": by_columns, "epilogue": "gated"},
    )  # fmt: skip
    move = EmulatedLink.move

    def lossy(self: Any, kind: str, sent: Any, target: Any, *rest: Any, **named: Any) -> None:
        before = target.view(-1)[-40:].clone()
        move(self, kind, sent, target, *rest, **named)
        target.view(-1)[-40:] = before
        if rest and rest[0] is not None:
            rest[0].view(-1)[-40:] = 0

    with pretended_gpu():
        right = gpu_worker.attempt(row)
        with mock.patch.object(EmulatedLink, "move", lossy):
            return [right, gpu_worker.attempt(row)]
