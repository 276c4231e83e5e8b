"""``OVERLAPC_DUMP``: the graphs before and after every pass, whether or not a cache is warm."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from overlapc.reporting.report import Report
from tests.targets import SLOW_LINK


def project(x, w):
    return functional.all_reduce(x @ w.t(), "sum", dist.group.WORLD)


@pytest.mark.parametrize("turn", ["cold", "warm"])
def test_every_compilation_dumps(turn, fake_group, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    folder = tmp_path / "dump"  # the same both times, or its name alone would miss the cache
    monkeypatch.setenv("OVERLAPC_DUMP", str(folder))
    for _ in range(1 if turn == "cold" else 2):
        shutil.rmtree(folder, ignore_errors=True)
        torch._dynamo.reset()
        compiled = torch.compile(project, backend="overlapc", options={"target": SLOW_LINK})
        with torch.no_grad():
            compiled(torch.randn(512, 64), torch.randn(128, 64))
        (graph,) = folder.iterdir()
        before, *_, after = sorted(path for path in graph.glob("[0-9]*.txt"))
        assert "_c10d_functional.all_reduce" in before.read_text()
        assert "overlapc.gemm_all_reduce" in after.read_text()
        assert "_c10d_functional.all_reduce" not in after.read_text()
        assert [site.decision for site in Report.load(graph).sites] == ["rewritten"]
