"""Whose a stored calibration is: weights are compared, and a changed model is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.planning.attention.softmax import HeadScores, SiteScores
from overlapc.planning.attention.softmax_table import GraphScores, SoftmaxTable, table_path
from overlapc.runtime.attention.softmax_tables import NOT_CALIBRATED, Calibration, calibration_of
from overlapc.runtime.weights import content_of, structure_of, weights_in

HEAD = HeadScores(10, -1.0, 1.0, (-1.0, 0.0, 0.9), 2.0, 9.0, 0)
SITE = SiteScores("layers.0", "1 heads of 8 float32, scaled by 0.5", (HEAD,))


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def weights(seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(t) for t in (torch.randn(300, 5), torch.randn(4), torch.randn(0))]


def store(of, sites=(SITE,)):
    path = table_path(structure_of(of))
    table = SoftmaxTable.load(path) if path.exists() else SoftmaxTable(structure_of(of))
    table.with_graph(GraphScores(content_of(of), tuple(sites))).save(path)
    return path


def test_weights_are_told_apart_by_any_element_and_not_by_order():
    first = weights()
    assert content_of(first) == content_of(first[::-1])
    assert structure_of(first) == structure_of(first[::-1])
    changed = weights()
    changed[0].data[137, 3] *= 1.0001
    assert content_of(changed) != content_of(first)
    assert structure_of(changed) == structure_of(first)
    # The sum of all elements is the same.
    assert content_of([first[0].detach().flip(0), *first[1:]]) != content_of(first)
    assert structure_of([first[0].detach().half(), *first[1:]]) != structure_of(first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.int8])
def test_weights_of_every_dtype_are_read(dtype):
    one = torch.randn(70, 3).to(dtype)
    other = one.clone()
    other[31, 2] = other[31, 2].float() + 1
    assert content_of([one]) == content_of([one.t().contiguous().t()]) != content_of([other])


def test_weights_are_the_parameters_of_a_graph():
    own = weights()
    assert weights_in([torch.randn(3), own[0], 7, own[1]]) == own[:2]


def test_what_was_stored_is_for_the_same_weights():
    assert calibration_of(weights()) == NOT_CALIBRATED
    assert calibration_of([]) == NOT_CALIBRATED
    store(weights())
    assert calibration_of(weights()).sites == (SITE,)
    assert calibration_of(weights(1)[:2]) == NOT_CALIBRATED


def test_a_changed_model_is_refused_with_both_hashes():
    old, new = weights(), weights(1)
    store(old)
    found = calibration_of(new)
    assert found.sites == ()
    assert found.problem == (
        f"Its weights ({content_of(new)}) are not those of the calibration ({content_of(old)}): "
        "run overlapc calibrate --softmax with this model."
    )
    # Once the changed one was calibrated, both are known.
    other = replace(SITE, where="elsewhere")
    store(new, [other])
    assert calibration_of(new).sites == (other,)
    assert calibration_of(old).sites == (SITE,)


def test_a_file_that_cannot_be_read_is_said_to_be_one():
    store(weights()).write_text("{}")
    assert "cannot be read" in calibration_of(weights()).problem


def test_weights_without_content_are_nobodys():
    store(weights())
    meta = [torch.nn.Parameter(t.detach().to("meta")) for t in weights()]
    assert content_of(meta) == ""
    assert "weights cannot be read" in calibration_of(meta).problem


def test_an_attention_is_compared_as_well():
    found = Calibration((SITE, replace(SITE, heads=())))
    assert found.site(0, 2, SITE.attention) == SITE
    assert found.site(1, 2, "anything") == ""
    assert "one of 2 attentions of a graph, not 3" in str(found.site(0, 3, SITE.attention))
    other = "1 heads of 8 float32, scaled by 0.25"
    said = found.site(0, 2, other)
    assert f"calibrated as {SITE.attention}, and has {other}" in str(said)
    assert NOT_CALIBRATED.site(0, 2, other) == ""
    assert Calibration(problem="Why.").site(0, 2, other) == "Why."
