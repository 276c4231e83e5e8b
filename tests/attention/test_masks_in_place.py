"""Constants that a graph makes by writing in place: masks, and numbers that scale scores."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from overlapc.graphs.attention.reading import constants
from overlapc.graphs.attention.reading.tensors import Expression
from overlapc.graphs.attention.reading.versions import Versions
from tests.attention.catalogue import square
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF, K


def attend(q, k, v, mask):
    return (q @ k.mT + mask).softmax(-1) @ v


def later():
    return torch.ones(K, K, dtype=torch.bool).triu_(1)


def triangle(q, k, v):
    return attend(q, k, v, torch.full((K, K), -INF).triu_(1))


def triangle_in_scores(q, k, v):
    s = q @ k.mT
    s.add_(torch.full((K, K), -INF).triu_(1))
    return s.softmax(-1) @ v


def triangle_of_empty(q, k, v):
    return attend(q, k, v, torch.empty(K, K).fill_(-INF).triu_(1))


def filled_in_place(q, k, v):
    return attend(q, k, v, torch.zeros(K, K).masked_fill_(later(), -INF))


def filled_before(q, k, v):
    mask = torch.zeros(K, K)
    mask.masked_fill_(later(), -INF)
    return attend(q, k, v, mask)


def item_set(q, k, v):
    mask = torch.zeros(K, K)
    mask[later()] = -INF
    return attend(q, k, v, mask)


def written_as_result(q, k, v):
    mask = torch.zeros(K, K)
    torch.triu(torch.full((K, K), -INF), 1, out=mask)
    return attend(q, k, v, mask)


def wiped_later(q, k, v):
    mask = torch.zeros(K, K)
    mask.masked_fill_(later(), -INF)
    first = attend(q, k, v, mask)
    mask.zero_()
    return attend(first, k, v, mask)


def in_a_checkpoint(q, k, v):
    mask = torch.full((K, K), -INF).triu_(1)
    return checkpoint(attend, q, k, v, mask, use_reentrant=False)


def filled_through_a_view(q, k, v):
    """Not read: what was written is another node's."""
    mask = torch.zeros(K, K)
    rows = mask[3:]
    rows.masked_fill_(later()[3:], -INF)
    return attend(q, k, v, mask)


def filled_before_a_checkpoint(q, k, v):
    mask = torch.zeros(K, K)
    mask.masked_fill_(later(), -INF)
    return checkpoint(attend, q, k, v, mask, use_reentrant=False)


def drawn(q, k, v):
    """Another number in each call."""
    return (q @ k.mT * torch.zeros(()).uniform_()).softmax(-1) @ v


def unset(q, k, v):
    """Whatever was in the memory."""
    return (q @ k.mT * torch.empty(()).clamp_(0.25, 0.5)).softmax(-1) @ v


def number_written(q, k, v):
    number = torch.tensor(0.5)
    scores = q @ k.mT
    number.mul_(3)
    return (scores * number).softmax(-1) @ v


def number_filled(q, k, v):
    number = torch.tensor(0.0)
    scores = q @ k.mT
    number.fill_(-INF)
    return torch.where(later(), number, scores).softmax(-1) @ v


CAUSAL = (
    triangle, triangle_in_scores, triangle_of_empty, filled_in_place, filled_before, item_set,
    written_as_result, in_a_checkpoint,
)  # fmt: skip


def trained():
    return [operand.requires_grad_() for operand in square()]


def assert_right(function, done):
    operands = square()
    torch.manual_seed(3)
    found = done.function(*operands)
    torch.manual_seed(3)
    torch.testing.assert_close(found, function(*operands))


@pytest.mark.parametrize("function", CAUSAL)
def test_a_triangle_is_causal(function):
    done = rewrite(function, *(trained() if function is in_a_checkpoint else square()))
    assert done.codes == ["fused"]
    assert any("is_causal=True" in graph for graph in done.after)
    assert_right(function, done)


WRITTEN = (wiped_later, filled_through_a_view, number_written, number_filled)


@pytest.mark.parametrize("function", WRITTEN)
def test_what_is_written_is_what_is_meant(function):
    done = rewrite(function, *square())
    assert_right(function, done)


def test_a_body_is_given_what_was_written():
    operands = trained()
    done = rewrite(filled_before_a_checkpoint, *operands)
    torch.testing.assert_close(done.function(*operands), filled_before_a_checkpoint(*operands))


@pytest.mark.parametrize("function", [drawn, unset])
def test_what_differs_from_call_to_call_is_no_constant(function):
    done = rewrite(function, *square())
    assert "scale=0." not in done.after[-1]
    if function is drawn:
        assert_right(function, done)


@dataclass(frozen=True)
class Mutant:
    where: object
    name: str
    other: object
    test: object
    case: object


def as_made(self, versions):
    return self.node


def any_call(versions, node):
    return versions.calls.get(node) is not None


def unwritten(self, source):
    return False


MUTANTS = {
    "a mask is what was made first": Mutant(
        Expression, "writer", as_made, test_what_is_written_is_what_is_meant, filled_before
    ),
    "numbers that are drawn are constants": Mutant(
        constants, "_is_computable", any_call,
        test_what_differs_from_call_to_call_is_no_constant, drawn,
    ),
    "memory that is found is a constant": Mutant(
        constants, "_is_overwritten", any_call,
        test_what_differs_from_call_to_call_is_no_constant, unset,
    ),
    "a number is what was made first": Mutant(
        Versions, "is_written", unwritten, test_what_is_written_is_what_is_meant, number_written
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name, monkeypatch):
    mutant = MUTANTS[name]
    monkeypatch.setattr(mutant.where, mutant.name, mutant.other)
    with pytest.raises(AssertionError):
        mutant.test(mutant.case)


def cached(q, k, v, keys, values, first):
    """Places of a cache that are counted from a number, and by which it is written."""
    places = first + torch.arange(q.shape[-2])
    keys[:, :, places] = k
    values[:, :, places] = v
    kept = torch.arange(keys.shape[-2]) <= places[:, None]
    return (q @ keys.mT).masked_fill(~kept, -INF).softmax(-1) @ values


def test_places_that_a_cache_is_written_by_are_not_written():
    """Mutant: what is set by places shares memory with them, so that they are not known after."""

    def inputs():
        torch.manual_seed(0)
        kept = torch.randn(2, 2, 3, 40, 8)
        return *torch.randn(3, 2, 3, 5, 8), *kept, torch.tensor(20)

    done = rewrite(cached, *inputs())
    assert done.codes == ["valid_keys"]
    torch.testing.assert_close(done.function(*inputs()), cached(*inputs()))
