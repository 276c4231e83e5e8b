"""What ``torch.compile(...).aot_compile`` makes of a function is saved, and loaded elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce

from overlapc import compiled as compiled_graphs
from overlapc import direct_calls, ledger
from overlapc.compiled import AgreeingCallable
from overlapc.errors import ArtifactError
from overlapc.options import from_user
from overlapc.planning.attention import by_rows
from overlapc.targets import TargetChoice
from tests.ranks import Ranks
from tests.targets import SLOW_LINK

LOADING = """
import json, sys, torch
with open(sys.argv[1], "rb") as file:
    loaded = torch.compiler.load_compiled_function(file)
torch.manual_seed(1)
operands = tuple(torch.randn(3, 1, 2, 384, 16))
found = loaded(*operands)
import overlapc
from tests.runtime.test_saved import attention
wanted = attention(*(side.double() for side in operands))
sites = [(site.kind, site.decision, site.code) for site in overlapc.report().sites]
print(json.dumps([(found - wanted).abs().max().item(), sites]))
"""


def attention(q, k, v):
    """Causal, of as many rows as our op computes by parts on a processor."""
    later = torch.ones(384, 384, dtype=torch.bool).triu(1)
    return (q @ k.mT / 4).masked_fill(later, -torch.inf).softmax(-1) @ v


def operands():
    return tuple(torch.randn(3, 1, 2, 384, 16))


def compiled_ahead(function, given, **options):
    """As torch compiles it ahead of time, which torch 2.11 has to be told to know."""
    torch._dynamo.reset()
    compiling: Any = torch.compile
    with torch._dynamo.config.patch(enable_aot_compile=True):
        compiled = compiling(function, backend="overlapc", fullgraph=True, options=options)
        return compiled.aot_compile((given, {}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of a function with an op of ours, and its error before it was saved."""
    path = tmp_path_factory.mktemp("saved") / "attention.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_rows, "has_heads", lambda *counts: True)  # of any machine
        patch.setattr(by_rows, "LEAST_DIM", 16)
        function = compiled_ahead(attention, operands(), softmax="sdpa")
    sides = operands()
    error = (function(*sides) - attention(*(s.double() for s in sides))).abs().max()
    function.save_compiled_function(str(path))
    return path, error


def test_it_is_loaded_with_its_sites(saved, monkeypatch):
    """Mutants: torch's own class loads it; its entry is not taken in; ops are not installed."""
    path, error = saved
    installed: list[bool] = []
    monkeypatch.setattr(ledger, "_entries", {})
    monkeypatch.setattr(direct_calls, "install", lambda: installed.append(True))
    with path.open("rb") as file:
        loaded = torch.compiler.load_compiled_function(file)
    sides = operands()
    there = (loaded(*sides) - attention(*(side.double() for side in sides))).abs().max()
    assert max(error, there) < 1e-6
    assert [(s.decision, s.code) for s in ledger.report().sites] == [("rewritten", "by_rows")]
    assert installed == [True]


@pytest.mark.long
def test_another_process_loads_it(saved, tmp_path):
    """It imports nothing of overlapc before, and finds no cache."""
    path, error = saved
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADING, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    there, sites = json.loads(done.stdout.splitlines()[-1])
    assert sites == [["attention", "rewritten", "by_rows"]]
    assert max(error, there) < 1e-6


def test_another_version_of_overlapc_refuses_it(saved, monkeypatch):
    """Mutant: sources are not compared."""
    path, _ = saved
    monkeypatch.setattr(compiled_graphs, "fingerprint_of_sources", lambda: "another")
    with path.open("rb") as file, pytest.raises(ArtifactError, match="another version"):
        torch.compiler.load_compiled_function(file)


def test_what_inductor_keeps_no_artifact_of_cannot_be_saved():
    entry = ledger.Entry("saved", from_user(None), TargetChoice("auto"))
    with pytest.raises(ArtifactError, match="dump and fuel"):
        AgreeingCallable.serialize_compile_artifacts(AgreeingCallable(attention, entry))


def chain(x, weight):
    return all_reduce(x @ weight, "sum", dist.group.WORLD).relu()


def chain_operands(rank):
    generator = torch.Generator().manual_seed(rank)
    return tuple(torch.randn(shape, generator=generator) for shape in ((256, 64), (64, 512)))


def save_chain(rank, folder):
    function = compiled_ahead(chain, chain_operands(rank), target=SLOW_LINK, overlap="chunked")
    function.save_compiled_function(f"{folder}/{rank}")


def load_chain(rank, folder):
    """The largest error, and the calls of the one site."""
    with open(f"{folder}/{rank}", "rb") as file:
        loaded = torch.compiler.load_compiled_function(file)
    x, weight = chain_operands(rank)
    wanted = chain(x.double(), weight.double())
    error = ((loaded(x, weight) - wanted).norm() / wanted.norm()).item()
    (site,) = ledger.report().sites
    return error, dict(site.calls)


@pytest.mark.long
def test_ranks_load_what_others_saved(two_ranks, tmp_path):
    """They have another cache. Mutant: the target that ops plan for is not kept."""
    (tmp_path / "saved").mkdir()
    two_ranks.run(save_chain, tmp_path / "saved")
    others = Ranks(2, environment={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")})
    try:
        found = others.run(load_chain, tmp_path / "saved")
    finally:
        others.close()
    for error, calls in found:
        assert error < 1e-6
        assert calls == {"chunked": 1}
