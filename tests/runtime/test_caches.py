"""Warm caches: rewrite and report survive, and whatever decides a rewrite makes a new entry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
import torch, torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._dynamo.utils import counters
from torch.testing._internal.distributed.fake_pg import FakeStore
from tests.targets import FAST_LINK, SLOW_LINK
given = json.loads(sys.argv[1])
dist.init_process_group("fake", rank=given["rank"], world_size=given["size"], store=FakeStore())
import overlapc, overlapc.passes.base as base
ran = []
original = base.run_passes
import overlapc.backend as backend_module
def watched(*args):
    ran.append(1)
    return original(*args)
backend_module.run_passes = watched
options = dict(given["options"])
options["target"] = {"slow": SLOW_LINK, "fast": FAST_LINK}[options.get("target", "slow")]
torch.manual_seed(0)
x, w = torch.randn(512, 64, requires_grad=True), torch.randn(128, 64)
def project(x, w):
    return functional.all_reduce(x @ w.t(), "sum", dist.group.WORLD).relu()
kwargs = {"options": options} if given["backend"] == "overlapc" else {}
y = torch.compile(project, backend=given["backend"], **kwargs)(x, w)
y.sum().backward()
wanted = (x @ w.t()).relu()
report = overlapc.report()
print(json.dumps({
    "passes": len(ran),
    "right": torch.allclose(y, wanted, atol=1e-4),
    "sites": [[s.graph, s.decision, s.where.split(":")[0], dict(s.calls)] for s in report.sites],
}))
"""


class Machine:
    """Fresh processes that share one pair of cache directories."""

    def __init__(self, folder):
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)
        self.environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(folder / "xdg"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *, backend="overlapc", rank=0, size=2, **options):
        given = json.dumps({"backend": backend, "rank": rank, "size": size, "options": options})
        done = subprocess.run(
            [sys.executable, str(self.program), given],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_warm_cache_keeps_rewrite_and_report_for_every_rank(machine):
    plain = machine.run(backend="inductor")
    cold = machine.run()
    warm = machine.run(rank=1)
    assert (plain["passes"], plain["sites"]) == (0, [])
    assert cold["passes"] == 2  # forward and backward; plain Inductor's artifact did not answer
    assert warm["passes"] == 0
    assert cold["right"]
    assert warm["right"]
    assert warm["sites"] == cold["sites"]
    forward = [site for site in warm["sites"] if site[0] == "forward"]
    assert [(site[1], site[3]) for site in forward] == [("rewritten", {"chunked": 1})]


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [{"target": "fast"}, {"overlap": "serial"}, {"size": 4}, {"verify": True}],
    ids=str,
)
def test_what_decides_a_rewrite_misses_the_cache(machine, change):
    assert machine.run()["passes"] == 2
    assert machine.run(**change)["passes"] == 2
    assert machine.run(**change)["passes"] == 0
