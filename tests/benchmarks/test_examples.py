"""The demo's parts: its text, its sharding, its drawings; and, long, the demo itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

import overlapc
from benchmarks.measuring.paired import Samples
from examples.llama_bound import ModelBound, SiteBound
from examples.llama_model import (
    SEQUENCES,
    TOKENS,
    SiteShape,
    batch,
    sites,
    tensor_parallel,
    tokenizer,
)
from examples.llama_output import comparison, timelines
from examples.text.train_tokenizer import TEXT, TOKENIZER, train
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from tests.benchmarks.llamas import small_llama
from tests.ranks import Ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_tokenizer_is_the_one_that_its_script_makes() -> None:
    again = json.loads(train(TEXT.read_text()).to_str())
    assert again["model"] == json.loads(TOKENIZER.read_text())["model"]


def test_the_batch_is_the_text() -> None:
    tokens = batch()
    assert tokens.shape == (SEQUENCES, TOKENS)
    decoded = tokenizer().decode(tokens.flatten().tolist())
    assert isinstance(decoded, str)
    assert len(decoded) > 6000
    assert TEXT.read_text().startswith(decoded)


def sharded_and_whole(rank: int) -> None:
    whole = small_llama()
    tokens = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        expected = whole(tokens).logits
        sharded = tensor_parallel(whole, init_device_mesh("cpu", (2,)))
        torch.testing.assert_close(sharded(tokens).logits, expected)
    layer = sharded.model.layers[0]
    linears = (layer.self_attn.o_proj, layer.mlp.down_proj)
    found = [tuple(linear.weight.to_local().shape) for linear in linears]
    assert found == [(site.n, site.k) for site in sites(sharded, 2)]


def test_the_sharded_model_is_the_model(two_ranks: Ranks) -> None:
    two_ranks.run(sharded_and_whole)


def chunked_plan() -> Plan:
    return overlapc.plan(
        m=8192,
        n=8192,
        k=3584,
        collective="all_reduce",
        world_size=8,
        dtype="bfloat16",
        target=Target.load("h100-nvlink"),
    )


def test_the_comparison_is_to_inductor_and_to_the_bound() -> None:
    samples = Samples({"inductor": (2.0, 4.0, 2.2), "overlapc": (1.0, 2.0, 1.1)})
    site = SiteBound(SiteShape("o_proj", 8, 8, 8, 3), serial=0.7, together=0.3)
    bound = ModelBound((site,), 2.2 - site.saved)
    text = comparison(samples, {"inductor": 1e-6, "overlapc": 2e-6}, bound)
    row = next(line for line in text.splitlines() if line.strip().startswith("overlapc"))
    assert site.saved == pytest.approx(1.2)
    assert "1100 ms" in row
    assert "2.000" in row
    assert "0.91" in row
    assert "2.0e-06" in row
    assert "3 x o_proj" in text


def test_no_bound_is_better_for_a_site_that_overlap_makes_slower() -> None:
    assert SiteBound(SiteShape("o_proj", 8, 8, 8, 3), serial=0.3, together=0.4).saved == 0


def test_where_nothing_was_rewritten_a_shipped_target_is_planned_for() -> None:
    text = timelines(overlapc.Report([]))
    assert "h100-nvlink" in text
    assert "communication" in text


def test_plans_need_no_gpu_and_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from examples.plan_without_gpu import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "serial 64x" in done.stdout
    assert "signaled 32768x" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demo_ends_well() -> None:
    command = [sys.executable, "-m", "examples.tensor_parallel_llama"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("eager", "inductor", "overlapc"):
        row = next(
            line for line in done.stdout.splitlines() if line.strip().startswith(f"{name}  ")
        )
        assert float(row.split()[-1]) < 1e-4, row
    assert "2048x1024x1408" in done.stdout
    assert "2048x1024x512" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_quickstart_ends_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "examples/quickstart.py"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "gemm_all_reduce" in done.stdout
