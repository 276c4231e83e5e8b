"""Calibration of softmax, from a model and prompts to the φ that its compilations take."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import overlapc
from overlapc import cli
from overlapc.cli import callables
from overlapc.errors import ProblemError
from overlapc.graphs.attention import problems
from overlapc.planning.attention.softmax import LEGEND, NO_KERNEL
from overlapc.planning.attention.softmax_table import SoftmaxTable, table_path
from overlapc.runtime.weights import content_of, structure_of
from overlapc.tuning import softmax as tuned
from overlapc.tuning.softmax import batches_of, calibrate_softmax, describe
from tests.attention.rewriting import rewrite
from tests.attention.small_models import llama, mask_of, opt, prompts
from tests.runtime.attention.test_score_ranges import SPEC, check_head

pytestmark = pytest.mark.usefixtures("private")

BATCHES = prompts(12, 31)


@pytest.fixture(autouse=True)
def has_kernels(monkeypatch):
    """The device is said to run kernels."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


def calibrated(model, batches=BATCHES, **named):
    """What was seen of the attentions of a model that is one graph."""
    torch._dynamo.reset()
    (table,) = calibrate_softmax(model, [((tokens,), {}) for tokens in batches], **named)
    (graph,) = table.graphs
    return graph.sites


def check_ranges(model, sites, batches=BATCHES):
    """Every head is what the model computed in float64 says."""
    wide = [model.double().scores(tokens) for tokens in batches]
    model.float()
    assert len(sites) == len(wide[0])
    for layer, site in enumerate(sites):
        for h, head in enumerate(site.heads):
            rows = [row for scores in wide for row in scores[layer][:, h].flatten(0, 1)]
            check_head(SPEC, head, rows)


def sites_of(model, softmax="unified"):
    return rewrite(model, BATCHES[0], softmax=softmax).sites


def test_a_model_is_calibrated_and_compiled_with_it():
    model, told = llama(), []
    sites = calibrated(model, progress=lambda *said: told.append(said))
    check_ranges(model, sites)
    assert told == [("batch 1 of 2", 0.0), ("batch 2 of 2", 0.5)]
    assert sites[0].attention == "4 heads of 16 float32, scaled by 0.25"
    assert "layers.1" in sites[1].where
    done = rewrite(model, BATCHES[0], softmax="unified")
    assert done.codes == ["calibrated"] * 2
    assert "relative to a φ of each head" in done.sites[0].reason
    for site in sites:
        assert done.after[0].count(f"{list(site.phi)}") == 1
    torch.testing.assert_close(done.function(BATCHES[0]), model(BATCHES[0]))
    # A changed model is refused, and says so.
    old = content_of(list(model.parameters()))
    next(model.layers[0].parameters())[3, 5] += 1e-3
    (site, _) = sites_of(model)
    assert site.code == "unified"
    assert f"({content_of(list(model.parameters()))}) are not those" in site.reason
    assert f"of the calibration ({old}): run overlapc calibrate --softmax" in site.reason


def test_scores_of_hundreds_have_no_phi():
    model = opt()
    (site,) = sites = calibrated(model, BATCHES[1:])
    check_ranges(model, sites, BATCHES[1:])
    assert max(head.most for head in site.heads) > 300
    assert min(head.least for head in site.heads) < -300
    assert site.policy == "online"
    assert describe(site).count("φ none") >= 1
    assert "with a running maximum, for" in describe(site)


def model_and_batches():
    return llama(layers=1), BATCHES[:1]


@pytest.mark.parametrize("is_run", [False, True], ids=["no_kernel", "kernels"])
def test_the_command_stores_and_prints(is_run, monkeypatch, capsys):
    """Mutant: it is silent where no kernel can take what it found."""
    name = f"{__name__}:model_and_batches"
    monkeypatch.setattr(tuned, "runs_kernels", lambda device: is_run)
    monkeypatch.setattr(
        callables, "load", lambda given: model_and_batches if given == name else None
    )
    assert cli.main(["calibrate", "--softmax", name]) == 0
    path = table_path(structure_of(list(llama(layers=1).parameters())))
    said = capsys.readouterr().out
    assert str(path) in said
    assert said.count("φ of each head") == 1
    assert (NO_KERNEL in said) is not is_run
    heads, legend = said[: -len(LEGEND) - 1], said[-len(LEGEND) - 1 :]
    assert heads.count(" nats, slack ") == heads.count(" nats (median ") == 4
    assert legend == f"{LEGEND}\n"
    assert "before more than\n0.01 % of the rows" in legend
    (graph,) = SoftmaxTable.load(path).graphs
    assert graph.weights in said
    assert [head.rows for head in graph.sites[0].heads] == [2 * 12] * 4


@pytest.mark.parametrize("returned", [3, (1, 2, 3), (llama,)], ids=["3", "three", "one"])
def test_the_command_says_what_a_callable_has_to_return(returned, monkeypatch, capsys):
    monkeypatch.setattr(callables, "load", lambda given: lambda: returned)
    assert cli.main(["calibrate", "--softmax", "a:b"]) == 2
    assert "not (model, batches)" in capsys.readouterr().err


def test_batches_are_tuples_dicts_or_tensors():
    x = torch.zeros(1)
    assert batches_of((x, 2)) == [((x, 2), {})]
    assert batches_of([x, (x, 1), {"a": x}]) == [((x,), {}), ((x, 1), {}), ((), {"a": x})]
    for wrong, what in (
        ([], "an empty list"), ([x, 3], "a list whose item 1 is a int"), (None, "a NoneType"),
        (x, "a Tensor"),
    ):  # fmt: skip
        with pytest.raises(ProblemError, match=f"Batches cannot be read from {what}"):
            batches_of(wrong)


def test_what_has_no_weights_is_an_error():
    def attention(q):
        return torch.softmax(q @ q.mT, -1) @ q

    with pytest.raises(ProblemError, match="No attention was seen"):
        calibrate_softmax(attention, [((torch.randn(1, 2, 3, 4),), {})])


@pytest.mark.long
def test_scores_that_are_no_numbers_are_an_error():
    model = llama(layers=1)
    next(model.layers[0].parameters())[0, 0] = math.nan
    with pytest.raises(Exception, match="A score is NaN or infinite"):
        calibrated(model)


@pytest.mark.long
def test_other_choices_do_not_ask_for_it_and_nothing_is_stored_that_is_not_to_be():
    model = llama(layers=1)
    calibrated(model, save=False)
    assert not table_path("x").parent.exists()
    assert [site.code for site in sites_of(model)] == ["unified"]
    calibrated(model)
    for choice, code in (("online", "online"), ("sdpa", "few_keys"), ("unified", "calibrated")):
        assert [site.code for site in sites_of(model, choice)] == [code]


@pytest.mark.long
def test_a_compiled_program_is_given_it_also_on_a_warm_cache():
    model = llama(layers=1)
    (seen,) = calibrated(model)
    for _ in range(2):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="overlapc", options={"softmax": "unified"})
        torch.testing.assert_close(compiled(BATCHES[0]), model(BATCHES[0]), atol=1e-5, rtol=1e-4)
        site = overlapc.report().sites[-1]
        assert (site.code, len(seen.phi)) == ("calibrated", 4)


@pytest.mark.long
def test_layers_that_are_compiled_one_by_one_are_graphs_of_their_own():
    model = llama()
    calls = [((torch.randn(2, 9, 64), torch.zeros(9, 9)), {})]
    tables = [calibrate_softmax(layer, calls)[0] for layer in model.layers]
    assert tables[0].structure == tables[1].structure
    stored = SoftmaxTable.load(table_path(tables[0].structure))
    assert len(stored.graphs) == 2
    assert rewrite(model.layers[1], *calls[0][0], softmax="unified").codes == ["calibrated"]


class Checkpointed(torch.nn.Module):
    """The second layer of a model in an activation checkpoint, whose body a graph has first."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        x = self.model.embed(tokens)
        mask = mask_of(tokens.shape[1], x)
        first, second = self.model.layers
        x = x + first(self.model.norm(x), mask)
        return x + checkpoint(second, self.model.norm(x), mask, use_reentrant=False)


@pytest.mark.parametrize(
    "prompted", ["plain", pytest.param("checkpointed", marks=pytest.mark.long)]
)
def test_bodies_of_checkpoints_take_what_prompts_said(prompted):
    """By their places in the program, wherever they stood when prompts were run."""
    model = llama()
    # Scores of the first layer are other ones, so that a layer that takes them for its own shows.
    model.layers[0].q.weight.mul_(8.0)
    whole = model if prompted == "plain" else Checkpointed(model)
    sites = calibrated(whole, BATCHES[:1])
    assert sites[0].phi != sites[1].phi
    with torch.enable_grad():
        done = rewrite(Checkpointed(model), BATCHES[0], softmax="unified")
    assert done.codes == ["calibrated"] * 2
    for site, text in zip(sites[::-1], done.after, strict=True):
        assert text.count(f"{list(site.phi)}") == 1
    torch.testing.assert_close(done.function(BATCHES[0]), model(BATCHES[0]))
