"""φ of heads, from rows that each allow a range of it; the file that keeps what was seen."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from overlapc.errors import TargetError
from overlapc.planning.attention import softmax
from overlapc.planning.attention.softmax import (
    LEAST_SLACK,
    MOST_REDONE,
    HeadScores,
    Phi,
    SiteScores,
    choose_phi,
)
from overlapc.planning.attention.softmax_table import GraphScores, SoftmaxTable, table_path

HEAD = HeadScores(100, -3.0, 4.0, (-2.0, 0.5, 3.5), 1.5, 20.0, 0)
WITHOUT = replace(HEAD, phi=None, slack=0.0, redone_by_first=1)
SITE = SiteScores("layers.0.self_attn (model.py:3)", "2 heads of 64 float32", (HEAD, HEAD))


def by_trying_all(rows):
    """The widest run of numbers that leave few enough rows out, its middle and half its width."""
    wanted = len(rows) - int(len(rows) * MOST_REDONE)
    best, run = [], []
    for phi in range(-80, 81):
        covered = sum(low <= phi <= high for low, high in rows)
        run = [*run, phi] if covered >= wanted else []
        best = max(best, run, key=len)
    slack = (len(best) - 1) / 2
    return Phi(best[0] + slack, slack) if best and slack >= LEAST_SLACK else None


@pytest.mark.parametrize("seed", range(40))
def test_the_widest_range_is_found(seed, monkeypatch):
    monkeypatch.setattr(softmax, "MOST_REDONE", share := 0.1)
    monkeypatch.setitem(globals(), "MOST_REDONE", share)
    numbers = random.Random(seed)
    middles = [numbers.gauss(0, 1 + seed / 4) for _ in range(30)]
    rows = [(round(m - numbers.uniform(0, 20)), round(m + numbers.uniform(0, 20))) for m in middles]
    found = choose_phi(Counter(low for low, _ in rows), Counter(high for _, high in rows))
    assert found == by_trying_all(rows)


def test_one_row_of_many_costs_no_phi():
    lows, highs = Counter({0: 20_000}), Counter({50: 20_000})
    assert choose_phi(lows, highs) == Phi(25.0, 25.0)
    assert choose_phi(lows + Counter({300: 2}), highs + Counter({400: 2})) == Phi(25.0, 25.0)
    assert choose_phi(lows + Counter({300: 3}), highs + Counter({400: 3})) is None


def test_a_range_too_narrow_for_other_prompts_is_none():
    width = int(2 * LEAST_SLACK)
    assert choose_phi(Counter({0: 9}), Counter({width: 9})) == Phi(width / 2, LEAST_SLACK)
    assert choose_phi(Counter({0: 9}), Counter({width - 1: 9})) is None


@pytest.mark.parametrize(
    ("heads", "policy", "says"),
    [
        (
            (HEAD, replace(HEAD, phi=-7.0)),
            "head",
            "a φ of each head, -7 to 1.5, chosen for 200 rows",
        ),
        ((HEAD, replace(WITHOUT, redone_by_first=0)), "first_tile", "no φ to 1 of 2 heads"),
        ((HEAD, WITHOUT), "online", "with a running maximum, for 200 rows of prompts left no φ"),
    ],
    ids=["head", "first_tile", "online"],
)
def test_a_site_takes_what_all_its_heads_can(heads, policy, says):
    site = replace(SITE, heads=heads)
    assert site.policy == policy
    assert says in site.text()
    assert site.phi == (tuple(head.phi for head in heads) if policy == "head" else ())
    assert replace(site, heads=()).policy == ""


def test_a_table_is_read_back_and_keeps_other_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = SoftmaxTable("structure").with_graph(GraphScores("first", (SITE,)))
    other = replace(SITE, heads=(HEAD, WITHOUT))
    table = table.with_graph(GraphScores("second", (other,)))
    table = table.with_graph(GraphScores("first", (other, SITE)))
    path = table_path("structure")
    table.save(path)
    read = SoftmaxTable.load(path)
    assert read == table
    assert [graph.weights for graph in read.graphs] == ["second", "first"]
    assert read.graph("first") == GraphScores("first", (other, SITE))
    assert read.graph("third") is None
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"overlapc_linear": 1}', '{"overlapc_softmax": 2}'], ids=str
)
def test_what_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(TargetError, match="calibration of softmax cannot be read") as caught:
        SoftmaxTable.load(path)
    assert "calibrate --softmax" in caught.value.remedy


@pytest.mark.parametrize("phi", ["NaN", "Infinity", "-Infinity", "1e31", "-2e300"])
def test_a_phi_that_is_no_number_of_the_kernels_is_refused(tmp_path, phi):
    """Mutants: any number passes; an infinite one does."""
    path = tmp_path / "table.json"
    SoftmaxTable("structure", (GraphScores("first", (SITE,)),)).save(path)
    text = path.read_text()
    assert text.count('"phi": 1.5') == 2
    path.write_text(text.replace('"phi": 1.5', f'"phi": {phi}', 1))
    with pytest.raises(TargetError, match=r"graphs\[0\].sites\[0\].heads\[0\]: a φ of ") as caught:
        SoftmaxTable.load(path)
    assert caught.value.where == str(path)
    assert "calibrate --softmax" in caught.value.remedy


def test_a_head_is_described():
    """Mutants: what was rounded down is shown as it is; it is not kept within all scores."""
    seen = "100 rows, scores -3 to 4 nats (median about 0.562, 99.98 % within -2 to 3.62)"
    assert HEAD.text() == f"{seen}; φ 1.5 nats, slack 20"
    assert WITHOUT.text().endswith("φ none")
    few = replace(HEAD, least=-0.09, most=0.1, quantiles=(-0.125, -0.125, 0.0))
    assert (
        "scores -0.09 to 0.1 nats (median about -0.0625, 99.98 % within -0.09 to 0.1)" in few.text()
    )
    assert json.loads(json.dumps(HEAD.quantiles)) == [-2.0, 0.5, 3.5]
