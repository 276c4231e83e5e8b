"""The graphs that explain would compile, as texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import overlapc
from overlapc.reporting.report import Report


@dataclass(frozen=True)
class Explained:
    """What explain reported of a function, and the texts of its graphs before and after."""

    report: Report
    graphs: dict[str, tuple[str, str]]
    """Kind of graph -> (before the first pass, after the last)."""

    def text(self) -> str:
        """Everything in one text for a golden file; line numbers of tests are left out."""
        parts = []
        for kind, (before, after) in self.graphs.items():
            parts += [f"=== {kind}, before", before.rstrip()]
            parts += [f"=== {kind}, after" + (": unchanged" if before == after else "")]
            parts += [after.rstrip()] if before != after else []
        for site in self.report.sites:
            where = re.sub(r":\d+\)", ")", site.where)
            parts.append(f"--- {site.graph}: {site.decision} [{site.code}] {site.shape} at {where}")
        return (
            re.sub(r'"(target|options|place|site)":"[^"]*"', r'"\1":"*"', "\n".join(parts)) + "\n"
        )


@pytest.fixture
def explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_group: dist.ProcessGroup
) -> Callable[..., Explained]:
    """Explain a function on the fake group, with caches and dumps of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(
        function: Callable[..., Any], *args: Any, dynamic: bool | None = None, **options: Any
    ) -> Explained:
        dump = tmp_path / "dump"
        options = {"dump": str(dump), **options}
        report = overlapc.explain(function, options, dynamic=dynamic)(*args)
        graphs = {}
        for folder in sorted(dump.iterdir(), key=lambda f: (order(f.name), f.name)):
            texts = [path.read_text() for path in sorted(folder.glob("[0-9]*.txt"))]
            graphs[folder.name.split("-")[0]] = (texts[0], texts[-1])
        return Explained(report, graphs)

    return run


def order(name: str) -> int:
    """Forward before backward."""
    return ("forward", "backward", "inference").index(name.split("-")[0])


@pytest.fixture
def inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without gradients, and with tables of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.fixture
def own_caches(
    fake_group: dist.ProcessGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the fake group, with compiled code of the test's own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
