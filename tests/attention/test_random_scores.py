"""Any function of scores that is drawn is taken by a kernel of our own, with eager's values."""

from __future__ import annotations

import pytest
import torch

from overlapc.graphs.attention import problems
from tests.attention.random_scores import draw, operands
from tests.attention.rewriting import rewrite
from tests.attention.test_catalogue import assert_alike, wide

FEW, MANY = range(8), range(8, 200)


@pytest.fixture
def own(monkeypatch):
    """Sites are decided as where generated kernels run."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


def check(seed):
    """Its program runs here, by torch's ops; ``tests/codegen`` runs such in the interpreter."""
    drawn = draw(seed)
    inputs = (*operands(seed), *drawn.beside)
    done = rewrite(drawn.function, *inputs, softmax="unified")
    if done.codes == ["!weak_fill"]:  # a mask, multiplied by a negative number
        assert "filled with inf" in done.sites[0].reason
        assert done.after == done.before
        return
    assert done.codes == ["unified"], f"{drawn.name}: {done.sites[0].reason}"
    wanted = drawn.function(*map(wide, inputs)).double()
    try:
        assert_alike(done.function(*inputs), wanted, torch.float32, 20.0)
    except AssertionError as error:
        raise AssertionError(f"{drawn.name}: {error}") from None


@pytest.mark.parametrize("seed", FEW)
def test_a_few(own, seed):
    check(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", MANY)
def test_many(own, seed):
    check(seed)
