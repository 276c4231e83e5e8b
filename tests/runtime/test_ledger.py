"""The sites of one graph, entered by two ranks that share a cache folder."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.eval_frame import innermost_fn
from torch.compiler._cache import CacheArtifactManager

from overlapc import compiled as compiled_graphs
from overlapc import ledger
from overlapc.options import from_user
from overlapc.reporting.records import BEFORE_AUTOGRAD, Site
from overlapc.runtime.plans import keep
from overlapc.targets import TargetChoice
from tests.targets import SLOW_LINK


@pytest.fixture
def entry_of(tmp_path, monkeypatch):
    """Makes each rank's entry of one Dynamo graph, on one disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    options = from_user({"target": SLOW_LINK})

    def make(rank):
        monkeypatch.setattr(ledger, "_rank", lambda: rank)
        return ledger.Entry("key", options, TargetChoice(SLOW_LINK))

    return make


def sites_of(graph_id, graph, count=2):
    return [
        Site(
            id=f"{graph_id}.{i}",
            kind="attention",
            decision="refused",
            reason="For a test.",
            code="test",
            graph=graph,
            where=f"fc{i}",
        )
        for i in range(count)
    ]


ATTENTION, FORWARD, BACKWARD = f"{BEFORE_AUTOGRAD}-a", "forward-a", "backward-a"


def test_what_the_passes_of_this_rank_find_replaces_what_another_rank_wrote(entry_of):
    first = entry_of(0)
    first.add(ATTENTION, sites_of(ATTENTION, "forward"), {})
    first.add(FORWARD, sites_of(FORWARD, "forward"), {"world": ["all_reduce"]})
    second = entry_of(1)
    # Recalls the other's forward graph, whose constants differ from those of this rank.
    second.add(ATTENTION, sites_of(ATTENTION, "forward"), {})
    mine = sites_of("forward-b", "forward", 3)
    second.add("forward-b", mine, {"world": ["all_reduce"]})
    second.recall()
    assert second.sites == [*sites_of(ATTENTION, "forward"), *mine]
    assert second._sent_on("world") == ["all_reduce"]
    assert entry_of(1).sites == []
    again = entry_of(1)
    again.recall()
    assert again.sites == second.sites  # a warm cache shows them too


def test_stages_whose_passes_did_not_run_here_are_recalled(entry_of):
    first = entry_of(0)
    first.add(FORWARD, sites_of(FORWARD, "forward"), {})
    first.add(BACKWARD, sites_of(BACKWARD, "backward"), {})
    second = entry_of(1)
    second.add("backward-b", mine := sites_of("backward-b", "backward"), {})
    assert second.sites == [*sites_of(FORWARD, "forward"), *mine]


@pytest.mark.parametrize("is_warm", [False, True], ids=["compiled", "recalled"])
def test_sites_go_with_the_artifacts_that_torch_saves(is_warm, entry_of, tmp_path, monkeypatch):
    """Mutants: nothing is carried; what a warm cache had is not; the sent collectives stay."""
    first = entry_of(0)
    wanted = sites_of(FORWARD, "forward")
    with CacheArtifactManager.with_fresh_cache():
        first.add(FORWARD, wanted, {"world": ["all_reduce"]})
        saved = torch.compiler.save_cache_artifacts()
    if is_warm:
        with CacheArtifactManager.with_fresh_cache():
            entry_of(1).recall()
            saved = torch.compiler.save_cache_artifacts()
    assert saved
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    elsewhere = entry_of(0)
    elsewhere.recall()
    assert not elsewhere.sites
    assert torch.compiler.load_cache_artifacts(saved[0])
    elsewhere.recall()
    assert elsewhere.sites == wanted
    assert elsewhere._sent_on("world") == ["all_reduce"]


@pytest.mark.parametrize("spoil", ["bytes", "folder", "nowhere"])
def test_a_report_that_cannot_be_kept_costs_no_compilation(spoil, entry_of, tmp_path, caplog):
    """A disk that is full, or files that another program wrote over; the log says so.

    Mutants: only text that is no report is dropped; an error of writing is raised.
    """
    wanted = sites_of(FORWARD, "forward")
    path = entry_of(0)._path(0)
    if spoil == "nowhere":
        (tmp_path / "overlapc").touch()
    elif spoil == "bytes":
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\xff\x00")
    else:
        path.mkdir(parents=True)
    entry = entry_of(0)
    keep(SLOW_LINK)
    entry.recall()
    entry.add(FORWARD, wanted, {})
    assert entry.sites == wanted
    assert "a stored report is dropped" in caplog.text
    assert ("is not kept" in caplog.text) == (spoil != "bytes")
    assert ("a target is not kept" in caplog.text) == (spoil == "nowhere")


@pytest.mark.parametrize(
    "text", ["null", "[]", '{"a": 3}', '{"a": {"world": 3}}', '{"a": {"b": [0]}}']
)
def test_what_was_sent_is_not_taken_from_another_text(text, entry_of):
    """Mutants: any JSON is, and raised where it is joined or read; not looked through so far."""
    wanted = sites_of(FORWARD, "forward")
    entry_of(0).add(FORWARD, wanted, {"world": ["all_reduce"]})
    path = entry_of(0)._path(0).with_suffix(ledger.SENT)
    path.write_text(text.replace('"a"', f'"{FORWARD}"'))
    entry = entry_of(0)
    entry.recall()
    assert entry.sites == wanted
    assert entry._sent_on("world") is None


def test_dynamo_keeps_out_of_a_compiled_graph_once_a_call(entry_of):
    """It wraps what a backend gives it, and unwraps it before, but not what lies within."""

    def compiled(*args):
        return args

    def disabled():
        return torch._dynamo.disable(compiled)

    entry = entry_of(0)
    assert innermost_fn(compiled_graphs.agreeing(disabled(), entry)) is compiled
    entry.add("a", sites_of("a", "inference"), {})
    found = compiled_graphs.agreeing(disabled(), entry)
    assert isinstance(found, compiled_graphs.AgreeingCallable)
    assert found.compiled is compiled
    assert found(1, 2) == (1, 2)
