"""Under ``dynamic=True`` Dynamo holds a module's float for an input: it is read as its number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import overlapc
from overlapc import backend
from overlapc.graphs.attention import problems
from overlapc.graphs.attention.reading import floats
from overlapc.graphs.attention.reading.floats import MOST_NUMBERS
from tests.attention.catalogue import plain, square
from tests.attention.rewriting import rewrite


@pytest.fixture(autouse=True)
def none_settled(monkeypatch):
    """Numbers of an input's name are counted for the whole process."""
    monkeypatch.setattr(floats, "_settled", {})


class Scaled(nn.Module):
    """As Llama of transformers."""

    def __init__(self, scaling: float) -> None:
        super().__init__()
        self.scaling = scaling

    def forward(self, q, k, v):
        return (q @ k.mT * self.scaling).softmax(-1) @ v


class Capped(Scaled):
    """As Gemma 2."""

    def forward(self, q, k, v):
        return ((q @ k.mT / self.scaling).tanh() * self.scaling).softmax(-1) @ v


class Added(Scaled):
    """As Bloom."""

    def forward(self, q, k, v):
        biased = q.new_ones(q.shape[0] * q.shape[1], 1, k.shape[2]).cumsum(-1)
        q, k = q.flatten(0, 1), k.flatten(0, 1)
        scores = torch.baddbmm(biased, q, k.mT, beta=self.scaling / 2, alpha=self.scaling)
        return scores.view(*v.shape[:2], *scores.shape[1:]).softmax(-1) @ v


class Filled(Scaled):
    """What a mask is filled with says whether it hides keys."""

    def forward(self, q, k, v):
        mask = torch.zeros(q.shape[-2], k.shape[-2]).masked_fill(q[0, 0, :, :1] > 0, self.scaling)
        return (q @ k.mT + mask).softmax(-1) @ v


def check(module, function, operands):
    torch.testing.assert_close(function(*operands), module(*operands), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [Scaled, Capped, Added])
def test_is_read_as_its_number(make, monkeypatch):
    """Mutants: nothing is guarded, and the second scale is the first's; floats are no numbers."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: make is Capped)
    module = make(0.3)
    operands = plain()
    for operand in operands:  # sizes of heads are those of weights, in models
        torch._dynamo.mark_static(operand, -1)
    done = rewrite(module, *operands, dynamic=True, softmax="unified" if make is Capped else "sdpa")
    # Torch analyses a graph again once it holds a float for a number.
    assert set(done.codes) == {"unified" if make is Capped else "fused"}
    check(module, done.function, operands)
    check(module, done.function, [operand.clone() for operand in operands])
    module.scaling = 0.6
    check(module, done.function, operands)


def test_what_a_mask_is_filled_with_is_guarded(monkeypatch):
    """Mutant: only numbers of calls on the way from product to softmax are."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    module, operands = Filled(-1e9), plain()
    for operand in operands:
        torch._dynamo.mark_static(operand, -1)
    done = rewrite(module, *operands, dynamic=True, softmax="unified")
    graphs = len(done.after)
    check(module, done.function, operands)
    module.scaling = -0.5
    check(module, done.function, operands)
    assert len(done.after) > graphs


def test_one_that_was_seen_to_vary_stays_an_input():
    module, operands = Scaled(0.3), square()
    done = rewrite(module, *operands, dynamic=None)
    assert done.codes == ["fused"]
    for scaling in (0.6, 0.9, 1.2):
        module.scaling = scaling
        check(module, done.function, operands)
    assert done.codes == ["fused", "fused"]


def test_one_of_many_numbers_is_taken_for_one_that_varies():
    """Mutant: each number is a graph, until Dynamo compiles no more of them."""
    module, operands, graphs = Scaled(0.31), plain(), []
    done = rewrite(module, *operands, dynamic=True)
    for number in range(1, 8):
        module.scaling = 0.3 * number
        check(module, done.function, operands)
        graphs.append(len(done.after))
    assert graphs[MOST_NUMBERS] == graphs[-1]
    assert set(done.codes) == {"fused"}


def test_explain_tells_once_of_what_dynamo_analyses_again():
    """Mutant: what was found in a graph stays whose compilation is given up."""
    report = overlapc.explain(Scaled(0.7), {"softmax": "sdpa"}, dynamic=True)(*plain())
    assert [site.code for site in report.sites] == ["fused"]


def test_no_report_has_a_graph_that_was_not_compiled(monkeypatch):
    """Mutant: the ledger keeps its entry."""

    def fails(*args, **kwargs):
        raise RuntimeError("not compiled")

    monkeypatch.setattr(backend, "compile_fx", fails)
    torch._dynamo.reset()
    before = len(overlapc.report().sites)
    with pytest.raises(Exception, match="not compiled"):
        torch.compile(Scaled(0.9), backend="overlapc", options={"softmax": "sdpa"})(*square())
    assert len(overlapc.report().sites) == before
