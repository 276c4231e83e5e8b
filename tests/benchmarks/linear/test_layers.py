"""The processor's benchmark of linear layers: that it compares what it says, on tiny ones."""

from __future__ import annotations

import json

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.linear import __main__ as linear
from benchmarks.linear import candidates, layers
from benchmarks.linear.layers import Case, Layers
from benchmarks.linear.rows import (
    AGAIN,
    HEADER,
    INDUCTOR,
    OVERLAPC,
    OVERLAPC_VARYING,
    TUNED,
    VARYING,
    LinearRow,
    cells,
    page,
    to_json,
)
from benchmarks.measuring.paired import Samples
from benchmarks.measuring.results import write_results


def row_of(**times: float) -> LinearRow:
    """Of Inductor at a second, and of its noise and overlapc as given, all without spread."""
    names = {"again": AGAIN, "ours": OVERLAPC, "varying": OVERLAPC_VARYING}
    seconds = {INDUCTOR: (1.0,) * 9, VARYING: (1.0,) * 9}
    seconds |= {names[name]: (value,) * 9 for name, value in times.items()}
    return LinearRow("o", 8, 4, 4 << 22, Samples(seconds), "kept [library]", "", 1e-7)


@pytest.mark.parametrize(
    ("again", "ours", "is_slower"),
    [(1.0, 1.01, True), (1.0, 0.99, False), (1.05, 1.03, False), (0.95, 1.01, True)],
)
def test_slower_is_slower_than_inductor_and_than_its_noise(again, ours, is_slower):
    assert row_of(again=again, ours=ours).slower(OVERLAPC) == is_slower
    assert not row_of(again=again, ours=ours).slower(OVERLAPC_VARYING)
    assert row_of(again=again, ours=0.5, varying=ours).slower(OVERLAPC_VARYING) == is_slower


def test_the_page_names_what_is_slower():
    rows = [row_of(again=1.0, ours=1.5, varying=1.0), row_of(again=1.0, ours=0.5)]
    said = page(rows, {"date": "today"})
    assert "`overlapc` was surely slower than `inductor` in 1 of 2: o at 8; and more" in said
    assert "`overlapc, rows vary` was surely slower than `inductor, rows vary` in 0 of 1;" in said
    assert all(len(cells(row)) == len(HEADER) for row in rows)
    assert cells(rows[0])[2:4] == ["16", "250000"], "of one of four layers"


def test_parts_make_one_table(tmp_path):
    """With the commands of all. Mutants: the samples of an earlier run are lists, which are no
    tuples; its command is forgotten."""
    row, path = row_of(again=1.0, ours=0.5), tmp_path / "linear.json"
    assert linear.earlier(path) == ([], [])
    write_results(tmp_path, "linear", {"command": "the first"}, [to_json(row)], "")
    assert linear.earlier(path) == ([row], ["the first"])


def test_the_error_is_that_of_the_layer_with_what_follows_it():
    """Mutant: what follows is left out of what is right."""
    case = Case("tiny", 24, 32, torch.float32, silu=True)
    model, x = Layers(case, 2), case.x(8)
    with torch.no_grad():
        assert candidates.error_of(model, x, lambda: model(x)) < 1e-6
    assert str(case) == "tiny, 24x32 float32, then silu"


@pytest.mark.long
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN to pack for")
def test_what_a_user_may_have_tried_freezes_the_weights():
    """Without the options set while it is traced Inductor is given weights as inputs, silently."""
    case = Case("tiny", 24, 32, torch.bfloat16)
    counters.clear()
    with torch.no_grad():
        candidates.compiled(
            Layers(case, 2), case.x(8), dynamic=False, options=candidates.EVERYTHING
        )
    torch._dynamo.reset()
    assert counters["inductor"]["mkldnn_linear_weight_pack_matcher_count"] == 2


@pytest.mark.long
def test_a_part_is_measured_and_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("overlapc.runtime.linear.trials.COLD_BYTES", 1)
    monkeypatch.setattr(layers, "SHAPES", {"tiny": (24, 32)})
    monkeypatch.setattr(layers, "MOST_WEIGHTS", 2)
    monkeypatch.setattr(candidates, "FEWEST_ROUNDS", 9)
    out = tmp_path / "out"
    given = "--only float32 --rows 1,8 --seconds 0.01 --calibrating 0.01"
    with torch.no_grad():
        linear.main([*given.split(" "), "--out", str(out)])
    torch._dynamo.reset()
    one, eight = json.loads((out / "linear_part.json").read_text())["rows"]
    assert set(one["seconds"]) == {INDUCTOR, AGAIN, OVERLAPC, TUNED}
    assert set(eight["seconds"]) == {*one["seconds"], VARYING, OVERLAPC_VARYING}
    assert one["layer"] == "tiny, 24x32 float32"
    assert max(one["error"], eight["error"]) < 1e-5
    assert eight["decision"].startswith(("kept", "rewritten"))
    assert "M2" in (out / "linear_part_table.svg").read_text() or "library" in eight["decision"]
    assert (out / "linear_part_table.md").exists()
    assert "| tiny" in (out / "linear_part.md").read_text()
