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
from tests.attention.sizes import D, H, K
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
    "sinks_beside_a_weak_fill",
    "shift_beside_sinks",
    "floored",
    "raised_of_two",
    "off_by_one",
    "off_by_one_after",
    "padded_with_a_half",
)


def known(names):
    return [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in names]


NAMES = known(OWN)


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


SUNK = [name for name, spelling in OWN.items() if spelling.code == "fused_sinks"]


@pytest.mark.parametrize("name", known(SUNK))
def test_torchs_attention_is_told_of_sinks(name):
    """Mutants: no share is taken off; sums are those without a sink, in the forward or in what
    the backward makes weights of; a sink has no gradient, or one of the other sign."""
    spelling = OWN[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more)
    assert done.codes == ["fused_sinks"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("overlapc.runtime.attention.op.attention_by_torch")
        found = done.function(*operands, *more)
    eager = spelling.function(*operands, *more)
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    wanted = spelling.function(*map(wide, operands), *map(wide, more)).double()
    assert_alike(found, wanted, operands[0].dtype)


@pytest.mark.parametrize("keeps_one", [True, False])
@pytest.mark.parametrize("name", known(SUNK))
def test_gradients_beside_sinks(name, keeps_one):
    spelling = OWN[name]
    operands, more = inputs_of(spelling)
    if keeps_one:
        more = [one | (torch.arange(K) == 2) if one.dtype == torch.bool else one for one in more]

    def leaves(change):
        every = [change(one.detach()) for one in (*operands, *more)]
        return every, [
            one.requires_grad_()
            for one in every
            if (one.is_floating_point() and one.ndim != 4) or one.shape[-1] == D
        ]

    given, trained = leaves(torch.clone)
    done = rewrite(spelling.function, *given)
    assert done.codes[0] in ("fused_sinks", "fused_if_kept")
    weights = torch.randn_like(spelling.function(*operands, *more))
    with pytest.MonkeyPatch.context() as patch:
        if keeps_one:
            patch.delattr("overlapc.runtime.attention.gradients.gradients_by_torch")
        found = torch.autograd.grad(done.function(*given), trained, weights)
    given, trained = leaves(wide)
    wanted = torch.autograd.grad(spelling.function(*given), trained, weights.double())
    for one, other in zip(found, wanted, strict=True):
        assert_alike(one, other, operands[0].dtype, times=2)


@pytest.mark.parametrize("name", known(name for name in OWN if name not in SUNK))
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
    "capped_then_causal": ("softmax=bound bound=0.0 ", "and 2, and no row is computed twice"),
    "with_sinks": ("softmax=sink ", "relative to each head's sink"),
    "leaky": ("softmax=zero ", "relative to φ = 0, and rows"),
    "positions": ("softmax=online ", "a bias of each head may move a row's scores anywhere"),
    "capped_and_masked": ("softmax=bound bound=0.0 ", "no row that keeps a key is computed twice"),
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
