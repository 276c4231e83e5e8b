"""The part of a whole model: every way decodes the same, on a toy of one layer on a processor."""

from __future__ import annotations

import builtins
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import model as gpu_model
from benchmarks.gpu import run as gpu
from benchmarks.gpu.model import SPEED, TABLE_ROWS, WAYS, calibrate, rows, tables
from benchmarks.gpu.report import Page
from benchmarks.gpu.worker import attempt
from benchmarks.measuring.deadline import Deadline
from overlapc.planning.linear.regions import Regions
from overlapc.planning.target import Target

COMPILED = gpu_model.compiled
TOY = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    changes = {"SHAPE": TOY, "PROMPT": 5, "STEPS": 2, "DEVICE": "cpu", "MOST_ROUNDS": 7,
               "LINEAR_SECONDS": 0.1, "SPEED_SECONDS": 0.1, "DTYPE": torch.float32,
               "BATCHES": (2,)}  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(gpu_model, name, value)
    monkeypatch.setattr("overlapc.runtime.linear.trials.COLD_BYTES", 1)
    # No kernel of attention runs on a processor: each shape is asked for, and none is timed.
    monkeypatch.setattr("overlapc.tuning.attention.runs_kernels", lambda device: True)
    monkeypatch.setattr("overlapc.tuning.attention._measure", lambda device: _nothing)
    # The model sets these for its process, which here is of other tests as well.
    config = torch._dynamo.config
    own = {name: getattr(config, name) for name in ("recompile_limit", "automatic_dynamic_shapes")}
    with config.patch(**own):
        yield
    for made in (gpu_model.model, gpu_model.decoder, COMPILED):
        made.cache_clear()
    torch._dynamo.reset()


def _nothing(shape, keys, seconds):
    assert keys == gpu_model.PROMPT + gpu_model.STEPS


@pytest.mark.parametrize("factor", [1, 2], ids=["", "mutant"])
def test_a_way_is_compared_and_timed_beside_both_peers(toy, monkeypatch, factor):
    """Of what is not compiled here; what decodes something else is no result."""
    calls = []

    def uncompiled(batch, name):
        def step(ids):
            calls.append(name)
            logits = gpu_model.decoder(batch).step(ids)
            return logits * factor if name in WAYS else logits

        return step

    monkeypatch.setattr(gpu_model, "compiled", uncompiled)
    row = attempt(next(row for row in rows({}, Target.load("h100-nvlink")) if row.table == SPEED))
    if factor > 1:
        assert "WrongResult" in row["error"]
        return
    assert row["off by"] == 0
    assert row["tokens/s"] > 0
    assert len(row["of inductor"]) == 3
    assert len(set(map(calls.count, set(calls)))) == 1, "all decode as often"


def test_a_way_is_compiled_once(toy):
    """In minutes, with a model of 32 layers; of another batch it is another."""
    made = [gpu_model.compiled(batch, gpu_model.INDUCTOR) for batch in (1, 1, 2)]
    assert made[0] is made[1] is not made[2]


def test_a_cache_that_no_graph_can_rewind_is_said(toy, monkeypatch):
    old = SimpleNamespace(layers=[SimpleNamespace(keys=None)])
    monkeypatch.setattr("transformers.StaticCache", lambda **named: old)
    row = attempt(next(rows({}, Target.load("h100-nvlink"))))
    assert "has no cumulative_length" in row["skipped"]


def test_what_one_batch_measures_another_does_not_replace():
    """All have the same layers, and each measures its own row count."""
    found = {batch: set() for batch in gpu_model.BATCHES}
    names = []
    for row in rows({}, Target.load("h100-nvlink")):
        found[row.arguments["batch"]].add(row.arguments["tables_at"])
        names.append(row.name)
    assert [len(folders) for folders in found.values()] == [1, 1]
    assert not set.intersection(*found.values())
    assert names[:4] == [
        *("batch 1", "batch 1, overlapc, both"),
        *("batch 16", "batch 16, overlapc, both"),
    ]


@pytest.mark.long
def test_every_row_of_a_run_is_measured(toy):
    done = {TABLE_ROWS: [], SPEED: []}
    target = Target.load("h100-nvlink")
    for row in rows(done, target):
        done[row.table].append(attempt(row))
    assert not [row for found in done.values() for row in found if "error" in row]
    assert max(row["off by"] for row in done[SPEED]) < 1e-5
    assert [row["row"] for row in done[SPEED]] == [f"batch 2, {name}" for name in reversed(WAYS)]
    sites = {row["row"]: row["sites"] for row in done[SPEED]}
    assert "linear" in sites["batch 2, overlapc, both"]
    assert "linear" not in sites["batch 2, overlapc, attention"]
    assert list(tables(done, target)) == [SPEED, TABLE_ROWS]


@pytest.mark.long
def test_the_table_is_of_every_layer_of_a_step(toy, monkeypatch, tmp_path):
    monkeypatch.setattr("overlapc.planning.linear.regions.choose", lambda trials: Regions(1, 1, 3))
    row = calibrate(Deadline.after(0.1), 2, str(tmp_path))
    assert row["layers"] >= 5
    assert "flat 1..2 rows" in row["found"]


@pytest.mark.parametrize(("lacks", "key"), [("transformers", "skipped"), ("tokenizers", "error")])
def test_without_transformers_the_part_is_skipped_with_the_reason(
    lacks, key, monkeypatch, tmp_path
):
    """It ends as a skip does, and the page says why; transformers that lack something are an error.
    Mutants: every ImportError is a skip; none is."""

    def lacking(name, *more, real=builtins.__import__):
        if name == "transformers":
            raise ModuleNotFoundError(f"No module named {lacks!r}", name=lacks)
        return real(name, *more)

    class Inline:
        def run(self, row, limit):
            if row is gpu.DESCRIBED:
                shipped = Target.load("h200-nvlink")
                return {"device": "H200", "versions": "torch", "shipped": shipped}
            return attempt(row)

    gpu_model.model.cache_clear()
    monkeypatch.setattr(builtins, "__import__", lacking)
    failures = gpu.measure("model", Page(tmp_path, "model"), Inline(), 1)
    (data,), (page,) = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    result = json.loads(data.read_text())
    tried = [*result[TABLE_ROWS], *result[SPEED]]
    assert len(tried) == len(gpu_model.BATCHES) * (1 + len(WAYS))
    assert all(key in row for row in tried)
    assert failures == (len(tried) if key == "error" else 0)
    (said,) = result[gpu.VERDICTS]
    reason = {"skipped": "not measured: transformers is not installed", "error": "not measured"}
    assert said["measured"] == reason[key]
    assert reason[key] in page.read_text()
