"""Functions of scores and sinks: found, lowered to a kernel's program, and computed as eager does.

Here torch's own ops run the program that a kernel would run; the kernel itself is compared with
float64 in ``tests/codegen``.
"""

from __future__ import annotations

import pytest
import torch

from overlapc.graphs.attention import problems
from tests.attention.catalogue import Spelling, functional, keep, plain
from tests.attention.rewriting import rewrite
from tests.attention.score_functions import LEFT, OWN, SPEC
from tests.attention.sizes import H
from tests.attention.test_catalogue import assert_alike, inputs_of, wide


@pytest.fixture
def own(monkeypatch):
    """Sites are decided as where generated kernels run."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


SHORT = (
    "not_below",
    "sinks_first",
    "sinks_of_groups",
    "capped_then_causal",
    "capped_and_told",
    "leaky",
    "doubled",
    "filled_between",
    "with_sinks",
    "shift_beside_sinks",
    "floored",
    "raised_of_two",
    "off_by_one",
    "off_by_one_after",
    "padded_with_a_half",
)
NAMES = [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in OWN]


@pytest.mark.parametrize("name", NAMES)
def test_taken_by_a_kernel_of_our_own(own, name):
    spelling = OWN[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more, softmax="unified")
    assert done.codes == ["unified"]
    assert done.calls("softmax") == 0
    assert all(text in done.after[-1] for text in SPEC.get(name, ()))

    found = done.function(*operands, *more)
    eager = spelling.function(*operands, *more)
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    wanted = spelling.function(*map(wide, operands), *map(wide, more)).double()
    assert_alike(found, wanted, operands[0].dtype)


def test_gradients_of_a_floor(own):
    """Mutants: a constant tensor is a number; it stays the first of two; a floor is a clamp, which
    has another gradient where scores are the floor."""
    spelling = OWN["floored"]
    operands, more = inputs_of(spelling)
    leaves = [side.requires_grad_() for side in operands]
    done = rewrite(spelling.function, *leaves, *more, softmax="unified")
    assert done.codes == ["unified"]
    weights = torch.randn_like(operands[0])
    results = [function(*leaves, *more) for function in (done.function, spelling.function)]
    found, wanted = (torch.autograd.grad(result, leaves, weights) for result in results)
    for one, other in zip(found, wanted, strict=True):
        assert_alike(one, other.double(), torch.float32, times=2)


@pytest.mark.parametrize("name", NAMES)
def test_torchs_attention_does_not_take_it(name):
    spelling = OWN[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more)
    assert done.codes == ["!" + spelling.code]
    assert done.after == done.before


@pytest.mark.parametrize("name", LEFT)
def test_left_as_it_is(own, name):
    spelling = LEFT[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more, softmax="unified")
    assert done.codes == [spelling.code]
    assert done.after == done.before


SOURCES = {
    "capped_then_causal": ("softmax=bound bound=0.0 ", "its scores lie between -2 and 2"),
    "with_sinks": ("softmax=sink ", "relative to each head's sink"),
    "leaky": ("softmax=zero ", "relative to φ = 0, and rows"),
    "positions": ("softmax=online ", "a bias of each head may move a row's scores anywhere"),
    "capped_and_masked": ("softmax=bound bound=0.0 ", "no row is computed twice"),
    "half": ("softmax=first_tile ", "the maximum of each row's first keys"),
}
"""What a site's spec says of φ, and its reason."""


def positions(q, k, v, slopes):
    distance = torch.arange(k.shape[-2])
    return (q @ k.mT + slopes[:, None, None] * distance).softmax(-1) @ v


def capped_and_masked(q, k, v, kept):
    s = 5 * torch.tanh((q @ k.mT) / 5)
    return (s + torch.where(kept, 0.0, -1e30)).softmax(-1) @ v


MORE = {
    "positions": Spelling(positions, more=lambda: (torch.rand(H),)),
    "capped_and_masked": Spelling(capped_and_masked, more=keep),
    "half": Spelling(functional, operands=lambda: plain(dtype=torch.float16)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_where_phi_comes_from(own, name):
    spelling = {**OWN, **MORE}[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more, softmax="unified")
    text, reason = SOURCES[name]
    assert text in done.after[-1]
    assert reason in done.sites[0].reason
