"""Warm caches: rewrite and report survive, and whatever decides a rewrite makes a new entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.testing._internal.distributed.fake_pg import FakeStore

import overlapc
from overlapc import backend as backend_module
from tests.ranks import Ranks
from tests.targets import FAST_LINK, SLOW_LINK


def project(x, w):
    return functional.all_reduce(x @ w.t(), "sum", dist.group.WORLD).relu()


def project_otherwise(x, w):
    """Another graph of Dynamo's, and the same one after it."""
    return torch.relu(functional.all_reduce(torch.matmul(x, w.t()), "sum", dist.group.WORLD))


def compiled(_, backend, rank, size, options, function=project):
    """How often passes ran for a forward and a backward, whether it is right, and its sites."""
    dist.destroy_process_group()
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    ran, original = [], backend_module.run_passes

    def watched(*args):
        ran.append(1)
        return original(*args)

    backend_module.run_passes = watched
    torch.manual_seed(0)
    x, w = torch.randn(512, 64, requires_grad=True), torch.randn(128, 64)
    kwargs = {"options": {"target": SLOW_LINK, **options}} if backend == "overlapc" else {}
    y = torch.compile(function, backend=backend, **kwargs)(x, w)
    y.sum().backward()
    sites = [
        (site.graph, site.decision, site.where.split(":")[0], dict(site.calls))
        for site in overlapc.report().sites
    ]
    return len(ran), torch.allclose(y, (x @ w.t()).relu(), atol=1e-4), sites


class Machine:
    """Fresh processes that share one pair of cache directories."""

    def __init__(self, folder: Path) -> None:
        self.environment = {
            "XDG_CACHE_HOME": str(folder / "xdg"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }

    def run(self, *, backend="overlapc", rank=0, size=2, function=project, **options):
        process = Ranks(1, environment=self.environment)
        try:
            (found,) = process.run(compiled, backend, rank, size, options, function)
        finally:
            process.close()
        return found


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_warm_cache_keeps_rewrite_and_report_for_every_rank(machine):
    assert machine.run(backend="inductor") == (0, True, [])
    passes, right, sites = machine.run()
    assert passes == 2  # forward and backward; plain Inductor's artifact did not answer
    assert right
    assert machine.run(rank=1) == (0, True, sites)
    forward = [site for site in sites if site[0] == "forward"]
    assert [(site[1], site[3]) for site in forward] == [("rewritten", {"chunked": 1})]
    # Another spelling of the same is reported too, where the artifact of the first would serve.
    assert machine.run(function=project_otherwise) == (2, True, sites)


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [{"target": FAST_LINK}, {"overlap": "serial"}, {"size": 4}, {"verify": True}],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_a_rewrite_misses_the_cache(machine, change):
    assert machine.run()[0] == 2
    assert machine.run(**change)[0] == 2
    assert machine.run(**change)[0] == 0
