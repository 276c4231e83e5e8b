"""The passes as one pipeline: every collective is a site, whichever pass is left out."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import config as inductor_config

from overlapc.options import Options
from overlapc.passes import BEFORE_AUTOGRAD, PIPELINE
from overlapc.passes.base import Compilation
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


OWN, ALL = "Option disable leaves out overlap_chains.", "Option disable leaves out all."
CPP = "Inductor's cpp_wrapper cannot write the text that ops carry into C++."


@pytest.mark.parametrize(
    ("options", "configured", "reason"),
    [
        ({}, False, ""),
        ({"disable": ("order_collectives",)}, False, ""),
        ({"disable": ("overlap_chains",)}, False, OWN),
        ({"disable": ("all",)}, False, ALL),
        ({"disable": ("all", "overlap_chains")}, False, OWN),
        ({"disable": ("overlap_chains",), "inductor": {"cpp_wrapper": True}}, False, OWN),
        ({"inductor": {"cpp_wrapper": True}}, False, CPP),
        ({"inductor": {"cpp-wrapper": True}}, False, CPP),
        ({}, True, CPP),
        ({"inductor": {"max_autotune": True}}, True, CPP),
        ({"inductor": {"cpp_wrapper": False}}, True, ""),
    ],
)
def test_why_a_pass_is_left_out(options, configured, reason):
    """Inductor's configuration counts where the option says nothing else."""
    compilation = Compilation(Options(**options), "inference", lambda device, group: SLOW_LINK)
    with inductor_config.patch(cpp_wrapper=configured):
        assert compilation.why_disabled("overlap_chains") == reason
        assert compilation.is_disabled("overlap_chains") == bool(reason)


@pytest.mark.parametrize("one", [*BEFORE_AUTOGRAD, *PIPELINE], ids=lambda one: one.name)
def test_every_pass_asks_by_its_own_name(one, monkeypatch):
    """The mutant that asks for another one's name cannot be left out by its own."""
    asked = []

    def why_disabled(compilation, name):
        asked.append(name)
        return OWN

    monkeypatch.setattr(Compilation, "why_disabled", why_disabled)
    options = Options(verify=True, overlap="auto", linear="flat")
    graph = torch.fx.symbolic_trace(lambda x: x + 1).graph
    before = str(graph)
    one.apply(graph, Compilation(options, "inference", lambda device, group: SLOW_LINK))
    assert set(asked) <= {one.name}
    assert str(graph) == before


@pytest.mark.parametrize("at", ["match", "decide", "specification"])
def test_a_fault_costs_the_rewrite_of_a_chain_and_no_site(explained, monkeypatch, at):
    (before,) = reported(explained, "hide_collectives")[-1:]
    monkeypatch.setattr(f"overlapc.passes.overlap_chains.{at}", lambda *_: 1 / 0)
    sites = reported(explained, "hide_collectives")
    assert before[0] == "rewritten"
    assert len(sites) == COLLECTIVES
    assert sites[-1] == ("refused", "internal")


def test_a_fault_in_remarks_costs_these_alone(explained, monkeypatch):
    before = reported(explained, "")
    monkeypatch.setattr("overlapc.passes.overlap_chains.remarks", lambda *_: 1 / 0)
    assert reported(explained, "") == before
