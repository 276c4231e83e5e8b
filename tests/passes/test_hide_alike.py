"""Ranks whose sizes are unlike decide alike what is hidden."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from overlapc.graphs.exposure import Dependencies
from overlapc.passes import chain_decisions
from overlapc.planning.search import plan
from tests.passes.test_hide_collectives import COLUMNS, ROWS, all_reduce, gather
from tests.targets import machine

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("own_caches"),
]


def gradients(x, w, g):
    """Of the rows and of the weight of a layer whose columns ranks share."""
    return all_reduce(g @ w.t()).relu(), x.t() @ g


def gradients_turned(x, w, g):
    return g.t() @ x, all_reduce(g @ w.t()).relu()


def both_are_sent(x, w, g):
    return all_reduce(g @ w.t()).relu(), all_reduce(x.t() @ g).relu()


def of_other_columns(x, w, g):
    return all_reduce(g @ w.t()).relu(), x[:, :32].t() @ g


def of_other_rows(x, w, g):
    return all_reduce(g @ w.t()).relu(), x.t() @ g.sin()


def another_layer(x, w, g):
    """Which gives as many numbers as the weight has where a rank's share is as many as rows."""
    return all_reduce(g @ w.t()).relu(), g @ w.t().sin()


def dealt(x, w, g):
    rows = [len(g) // 4, len(g) - len(g) // 4]
    sent = functional.all_to_all_single(g @ w.t(), rows, rows, dist.group.WORLD)
    return sent.relu(), x.t() @ g


def gathered_before(x, w, g):
    return gather(x) @ w, g.t() @ x


CHOICES = {
    gradients: ["hidden_by_order"],
    gradients_turned: ["hidden_by_order"],
    dealt: ["hidden_by_order"],
    # Not as much work as the chain's own, or that of another chain.
    both_are_sent: [True, True],
    of_other_columns: [True],
    of_other_rows: [True],
    another_layer: [True],
    gathered_before: [True],
}
"""Codes of sites; True where a chain is cut."""
SHARES = (600, ROWS, 64, 8, 3)
"""Columns that ranks may have of one layer."""


def of_ranks(explained, function, rows=ROWS, dynamic=False, shares=SHARES):
    """What ranks choose that share the columns of one layer in unlike parts."""
    found = []
    for mine in shares:
        x, w, g = torch.randn(rows, COLUMNS), torch.randn(COLUMNS, mine), torch.randn(rows, mine)
        if dynamic:
            torch._dynamo.mark_dynamic(w, 1)
            torch._dynamo.mark_dynamic(g, 1)
        torch._dynamo.reset()
        with torch.no_grad():
            sites = explained(function, x, w, g, target=MIDDLE).report.sites
        found.append(
            [one.code if "hidden" in one.code else one.decision == "rewritten" for one in sites]
        )
    return found


MIDDLE = machine("middle-link", 4e8)


@pytest.mark.parametrize("function", CHOICES, ids=lambda function: function.__name__)
def test_unlike_shards_decide_alike(explained, function):
    assert of_ranks(explained, function) == [CHOICES[function]] * len(SHARES)


@pytest.mark.parametrize("function", [gradients, gradients_turned, dealt])
def test_a_rank_of_one_column_decides_as_the_others(explained, function):
    """To turn it moves nothing. Mutant: then it counts as not turned."""
    assert of_ranks(explained, function, shares=(1,)) == [CHOICES[function]]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_rank_that_deals_out_nothing_decides_as_the_others(explained, rows):
    """What it sends takes no time. Mutant: such a collective is not hidden."""
    assert of_ranks(explained, dealt, rows) == [CHOICES[dealt]] * len(SHARES)


@pytest.mark.parametrize("function", [gradients, of_other_rows])
def test_shards_that_vary_on_one_rank_decide_as_the_others(explained, function):
    assert of_ranks(explained, function, dynamic=True) == [CHOICES[function]] * len(SHARES)


def test_a_rank_that_goes_by_its_own_plan_is_caught(explained, monkeypatch):
    monkeypatch.setattr(
        chain_decisions,
        "_that_pays",
        lambda chain, problem, target, measured: next(
            (p for p in [plan(problem, target)] if p.schedule != "serial"), None
        ),
    )
    assert len(set(map(tuple, of_ranks(explained, of_other_rows)))) > 1


def test_a_rank_that_hides_by_its_own_seconds_is_caught(explained, monkeypatch):
    def by_seconds(self, collective, target, size, gemms, reserved):
        hiding = self.hiding(collective, target, size, reserved)
        return hiding if hiding and hiding.pays(0.2) else None

    monkeypatch.setattr(Dependencies, "by_gradients", by_seconds)
    assert len(set(map(tuple, of_ranks(explained, of_other_rows)))) > 1
