"""The passes as one pipeline: every collective is a site, whichever pass is left out."""

from __future__ import annotations

import pytest
import torch

from overlapc.passes import PIPELINE
from overlapc.passes.overlap_chains import OverlapChains
from tests.passes.catalogue import all_reduce, weight, x2
from tests.targets import SLOW_LINK


def equal_calls_and_a_chain(x, w):
    """One after the other, so that none can be hidden."""
    once, again = all_reduce(x @ w.t()), all_reduce(x @ w.t())
    return all_reduce((once + again.tanh()).relu() @ w)


COLLECTIVES = 3


def reported(explained, name):
    options = {"target": SLOW_LINK, "disable": (name,) if name else ()}
    with torch.no_grad():
        result = explained(equal_calls_and_a_chain, x2(), weight(), **options)
    return [(site.decision, site.code) for site in result.report.sites]


@pytest.mark.parametrize("name", ["", *(one.name for one in PIPELINE), "all"])
def test_every_collective_is_a_site_whichever_pass_is_left_out(name, explained):
    sites = reported(explained, name)
    assert len(sites) == COLLECTIVES
    is_left = name in ("overlap_chains", "all")
    assert (("refused", "disabled") in sites) == is_left
    if name in ("merge_collectives", "all"):
        assert ("rewritten", "merged") not in sites


def test_it_is_noticed_when_a_pass_that_is_left_out_is_silent(explained, monkeypatch):
    class Silent(OverlapChains):
        def apply(self, graph, compilation):
            if not compilation.is_disabled(self.name):
                super().apply(graph, compilation)

    pipeline = tuple(Silent() if isinstance(one, OverlapChains) else one for one in PIPELINE)
    monkeypatch.setattr("overlapc.explaining.PIPELINE", pipeline)
    assert len(reported(explained, "overlap_chains")) < COLLECTIVES
