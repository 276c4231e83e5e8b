"""Attention of our own in compiled graphs: which sites take it, its values, and its report."""

from __future__ import annotations

import pytest
import torch

import overlapc
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.graphs.collectives import collective_starts, sent_by
from overlapc.runtime.attention.program import attention_by_torch
from tests.attention.catalogue import functional, plain
from tests.attention.rewriting import rewrite
from tests.codegen import attention_oracle

SPEC = AttentionSpec("float32", 8, 12, groups=2, scale=0.3)


FEW = "zero, few rows, 1 split"
WAYS = {
    "plain": FEW,
    "causal": FEW,
    "grouped": FEW,
    "dead rows": "zero",
    "biased": "online",
}


@pytest.mark.parametrize("name", WAYS)
def test_a_compiled_program_runs_it(interpreted, name):
    decision, code, calls, _, redone, error = interpreted("attention_graphs.run", name, "unified")
    assert (decision, code, calls) == ("rewritten", "unified", {WAYS[name]: 1})
    assert redone == 0
    assert error < (3e-2 if name == "biased" else 2e-6)


FUNCTIONS = {"soft-cap": "bound", "sinks": "sink", "off by one": "sink"}
SLOW = pytest.param("off by one", marks=pytest.mark.long)


@pytest.mark.parametrize("name", ["sinks", pytest.param("soft-cap", marks=pytest.mark.long), SLOW])
def test_functions_of_scores(interpreted, name):
    *_, code, calls, _, redone, error = interpreted("attention_graphs.run", name, "unified")
    assert (code, calls) == ("unified", {f"{FUNCTIONS[name]}, few rows, 1 split": 1})
    assert redone == 0
    assert error < 2e-6


@pytest.mark.long
def test_positions_that_no_number_holds_for_keep_the_maximum(interpreted):
    *_, calls, _, _, error = interpreted("attention_graphs.run", "positions", "unified")
    assert calls == {"online": 1}
    assert error < 1e-4  # of scores of a thousand


@pytest.mark.long
@pytest.mark.parametrize("seed", range(24))
def test_functions_that_are_drawn(interpreted, seed):
    name, error = interpreted("attention_graphs.drawn", seed)
    assert error < 1e-4, name


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param("scaled up", FEW, marks=pytest.mark.long), ("many scaled up", "zero")],
)
def test_rows_that_are_redone_are_reported(interpreted, name, way):
    *_, calls, _, redone, error = interpreted("attention_graphs.run", name, "unified")
    assert calls == {way: 1}
    assert redone > 0
    assert error < 1e-4  # scores of a thousand have few bits left


def test_rows_choose_the_kernel_of_each_call_in_one_graph(interpreted):
    graphs, calls, error = interpreted("attention_graphs.varying", (2, 70, 3))
    assert graphs == 1
    assert calls == {FEW: 3, "zero": 1}  # the graph was traced by a call of few rows
    assert error < 2e-6


@pytest.mark.parametrize("rows", [2, pytest.param(15, marks=pytest.mark.long)])
def test_padding_is_a_mask_beside_a_length(interpreted, rows):
    graph, calls, error = interpreted("attention_graphs.padded_cache", rows)
    assert "lengths=1" in graph
    assert "aten.where.ScalarOther" in graph
    assert len(calls) == 1
    assert "few rows" in next(iter(calls))
    assert error < 2e-6


def test_online_redoes_nothing(interpreted):
    *_, calls, _, redone, error = interpreted("attention_graphs.run", "many scaled up", "online")
    assert calls == {"online": 1}
    assert redone == 0
    assert error < 1e-4


@pytest.mark.parametrize("name", ["far", pytest.param("many far", marks=pytest.mark.long)])
def test_a_running_phi_is_left_to_the_next_call(interpreted, name):
    # Fails where nothing is kept from call to call, or for another site.
    code, reason, redone, error = interpreted("attention_graphs.running", name, 3)
    assert code == "running"
    assert "relative to a running φ of each head" in reason
    assert redone[0] > 0
    assert redone[1:] == [0, 0]
    assert error < 2e-4


def test_a_calibrated_model_takes_a_number_for_each_head(interpreted):
    *found, error = interpreted("attention_graphs.calibrated", "llama", 1)
    assert found == ["calibrated", ["head"], 0]
    assert error < 1e-5


@pytest.mark.long
def test_scores_of_hundreds_are_redone_until_prompts_have_told_of_them(interpreted):
    code, ways, redone, error = interpreted("attention_graphs.calibrated", "opt", 0)
    assert (code, ways) == ("unified", ["zero"])
    assert redone > 50
    assert error < 1e-3
    *found, error = interpreted("attention_graphs.calibrated", "opt", 2)
    assert found == ["calibrated", ["online"], 0]
    assert error < 1e-3


def test_its_op_is_no_collective():
    """Nothing is put between it and its neighbours, and nobody compares what it sends."""
    graph = torch.fx.Graph()
    read = [graph.placeholder(name) for name in "qkv"]
    graph.call_function(torch.ops.overlapc.attention.default, (*read, [], None, None, "spec"))
    assert collective_starts(graph) == []
    assert sent_by(graph) == {}


def test_where_no_kernel_runs_a_site_is_kept():
    done = rewrite(functional, *plain(), softmax="unified")
    assert done.codes == ["=no_own_kernel"]
    assert done.after == done.before
    assert "do not run on cpu" in done.sites[0].reason


@pytest.mark.parametrize(
    "change", [{}, {"after": 0}, {"before": 3, "after": 1, "align": "bottom_right"}], ids=str
)
@pytest.mark.parametrize("dead", ["nan", "zero"])
@pytest.mark.parametrize("given", ["", "lengths", "lengths beyond", "sinks"])
def test_torch_computes_the_same(change, dead, given):
    torch.manual_seed(0)
    takes = {given.partition(" ")[0]: True} if given else {}
    spec = AttentionSpec(**{**vars_of(SPEC), **change, **takes, "dead": dead})
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 12)
    lengths = torch.tensor([8, 12] if "beyond" in given else [0, 5]) if spec.lengths else None
    sinks = torch.randn(4) if spec.sinks else None
    found, sums = attention_by_torch(spec, q, k, v, (), lengths, sinks)
    wanted, wanted_sums = attention_oracle.attention(spec, q, k, v, lengths=lengths, sinks=sinks)
    torch.testing.assert_close(found, wanted.float(), equal_nan=True)
    torch.testing.assert_close(sums, wanted_sums, check_dtype=False, rtol=1e-5, atol=1e-5)


def vars_of(spec):
    import dataclasses

    return dataclasses.asdict(spec)


def test_the_op_without_a_device_for_kernels():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 12)
    arguments = (q, k, v, [], None, None, None, str(SPEC), "a site of this test")
    torch.library.opcheck(torch.ops.overlapc.attention.default, arguments)
    out, _ = torch.ops.overlapc.attention(*arguments)
    torch.testing.assert_close(out, attention_oracle.attention(SPEC, q, k, v)[0].float())


@pytest.mark.parametrize("keys", [0, 1])
def test_without_keys_eager_gives_zeros(keys):
    q, k, v = torch.randn(1, 4, 2, 8), torch.randn(1, 2, keys, 8), torch.randn(1, 2, keys, 12)
    found, _ = attention_by_torch(SPEC, q, k, v, (), None, None)
    k, v = (side.repeat_interleave(2, 1) for side in (k, v))
    torch.testing.assert_close(found, torch.softmax(0.3 * q @ k.transpose(-1, -2), -1) @ v)


def test_options_name_it():
    with pytest.raises(overlapc.errors.OptionError, match="unified"):
        overlapc.explain(functional, {"softmax": "unfied"})


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("biased", (0, 1, 2, 3)),
        pytest.param("causal", (0, 1, 2), marks=pytest.mark.long),
        pytest.param("dead rows", (1, 2), marks=pytest.mark.long),
        pytest.param("grouped", (0,), marks=pytest.mark.long),
        pytest.param("in a checkpoint", (0, 1, 2), marks=pytest.mark.long),
    ],
)
def test_a_compiled_program_trains_by_it(interpreted, name, leaves):
    found = interpreted("attention_training.run", name, "unified", *leaves)
    decision, code, calls, reason, _, error = found
    assert (decision, code, calls["backward"]) == ("rewritten", "unified", 1)
    assert "torch" not in calls
    assert "its gradients are made by kernels of our own" in reason
    assert error < (1e-2 if name == "biased" else 1e-6)  # of bfloat16


@pytest.mark.long
def test_a_selective_policy_is_asked_about_it(interpreted):
    """What it saves is not computed again; by the mutant, a policy that saves nothing, it is."""
    calls, error, seen = interpreted("attention_training.seen_by_policy", "unified")
    assert "overlapc.attention.default" in seen
    assert not any("bmm" in name or "softmax" in name for name in seen)
    assert calls == {FEW: 1, "backward": 1}
    assert error < 1e-6


@pytest.mark.long
@pytest.mark.parametrize("name", ["far", "in a checkpoint"])
def test_a_running_phi_gives_the_same_gradients(interpreted, name):
    *_, code, calls, _, redone, error = interpreted("attention_training.run", name, "running")
    assert (code, calls["backward"]) == ("running", 1)
    assert "torch" not in calls
    assert (redone > 0) == (name == "far")
    assert error < 1e-4  # scores of hundreds have few bits left


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "attention", "padded"),
    [("llama", "eager", False), ("llama", "eager", True), ("gemma2", "eager", False),
     ("gpt_oss", "eager", False), ("llama", "sdpa", False), ("bloom", "eager", False)],
)  # fmt: skip
def test_a_family_trains_by_it(interpreted, name, attention, padded):
    found = interpreted("attention_training.family", name, attention, padded)
    codes, calls, error = found
    assert set(codes) == {"unified"}
    assert calls["backward"] == len(codes)
    assert "torch" not in calls
    assert error < 1e-5
