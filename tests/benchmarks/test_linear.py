"""The processor's benchmark of linear layers: that every way computes the layer, on tiny ones."""

from __future__ import annotations

import pytest
import torch

from benchmarks import linear
from benchmarks.linear import AGAIN, COLUMNS, PEER, Case, candidates, cases, row
from benchmarks.paired import Samples


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 8])
def test_all_ways_compute_the_layer(rows, monkeypatch):
    monkeypatch.setattr(linear, "COLD_BYTES", 1)
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.ones(shape).cumsum(-1) / shape[-1])
    found = candidates(Case("tiny", rows, 24, 32, torch.float32))
    assert {PEER, AGAIN, "library", "swapped"} <= set(found)
    assert ("vectors" in found) == (rows == 1)
    assert ("oneDNN, packed" in found) == torch.backends.mkldnn.is_available()
    values = [call() for call in found.values()]
    for value in values:
        torch.testing.assert_close(value, values[0])


def test_every_row_has_as_many_cells_as_the_head():
    case = next(cases())
    samples = Samples(dict.fromkeys((PEER, AGAIN, "library", "swapped"), (1e-3,) * 9))
    cells = row(case, samples).strip("|").split("|")
    assert len(cells) == len(COLUMNS) + 4
    assert cells[0].strip() == "qkv, 1x1536x1024 float32"
    assert cells[5].strip() == "-"
