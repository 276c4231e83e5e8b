"""Masks that the graph makes for sizes that vary: one that leaves each row its own key leaves none
without a key, so training is fused without asking; and no other is taken for such."""

from __future__ import annotations

import pytest
import torch

from tests.attention.families import FAMILIES, VOCABULARY, build
from tests.attention.rewriting import rewrite
from tests.attention.test_autocast import results

INF = torch.inf


def numbers(scores):
    """Of rows, as a column, and of keys."""
    rows, keys = scores.shape[-2:]
    return torch.arange(rows)[:, None], torch.arange(keys)[None, :]


def triu(scores):
    size = scores.shape[-1]
    return scores + torch.triu(torch.full((size, size), -INF), 1)


def tril(scores):
    size = scores.shape[-1]
    return scores.masked_fill(~torch.tril(torch.ones(size, size)).bool(), -INF)


def compared(scores):
    row, key = numbers(scores)
    return torch.where(key <= row, scores, -INF)


def last_rows(scores):
    """The last row has the last key, and the one before it."""
    rows, keys = scores.shape[-2:]
    near = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows).triu(keys - rows - 1)
    return scores.masked_fill(near.logical_not().view(1, 1, rows, keys), -INF)


def window(scores):
    row, key = numbers(scores)
    return scores.masked_fill(~((key <= row) & (row - key < 4))[None, None], -INF)


def added(scores):
    row, key = numbers(scores)
    return scores + (1.0 - (row >= key).float()) * -1e9


def turned(scores):
    row, key = numbers(scores)
    return scores + torch.full_like(row * key, -1e9, dtype=torch.float32).tril(-1).mT


def documents(scores):
    """Whatever the numbers of documents are, a row is in its own."""
    row, key = numbers(scores)
    name = (row[:, 0] * 7 % 5).cumsum(-1)
    return scores.masked_fill((name[row] != name[key]) | (key > row), -INF)


def none_of_first(scores):
    size = scores.shape[-1]
    return scores + torch.triu(torch.full((size, size), -INF), 0)


def before(scores):
    row, key = numbers(scores)
    return scores.masked_fill(key >= row, -INF)


def window_before(scores):
    row, key = numbers(scores)
    return scores.masked_fill(~((key <= row) & (row - key > 0)), -INF)


def padded(scores):
    row, key = numbers(scores)
    return scores.masked_fill((key > row) | (torch.rand(key.shape) > 2), -INF)


def of_unknown(scores):
    """A number that is NaN is no equal of its own."""
    row, key = numbers(scores)
    name = torch.rand(row.shape[0])
    return scores.masked_fill((name[row] != name[key]) | (key > row), -INF)


def in_less_bits(scores):
    """Which 32 bits do not hold."""
    row, key = numbers(scores)
    name = (row[:, 0] * 2**31).cumsum(-1)
    return scores.masked_fill((name[row].to(torch.int32) != name[key]) | (key > row), -INF)


def cut(scores):
    """A half is none as a whole number."""
    row, key = numbers(scores)
    return scores.masked_fill(((key <= row) * 0.5).long() == 0, -INF)


def cut_row(scores):
    """A row's number is one or none as a boolean."""
    row, key = numbers(scores)
    return scores.masked_fill((row.bool().long() != key) | (key > row), -INF)


def cut_size(scores):
    """And so is how many keys there are."""
    row, key = numbers(scores)
    has_some = torch.full_like(row, scores.shape[-1]).bool().long()
    return scores.masked_fill((key > row) | (has_some <= 1), -INF)


def cut_constant(scores):
    """The lower half of what 64 bits hold."""
    row, key = numbers(scores)
    one = torch.full_like(row, 2**32 + 1).to(torch.int32)
    return scores.masked_fill((key > row) | (one == 1), -INF)


def shifted(scores):
    row, key = numbers(scores)
    return scores.masked_fill(key > row - scores.shape[0], -INF)


def chunks(scores):
    """As Llama 4 counts chunks of a sequence that is padded: behind the keys that are hidden."""
    row, key = numbers(scores)
    hidden = (torch.rand(2, key.shape[1]) < 0.1).cumprod(-1).sum(-1)
    first = hidden[torch.arange(2)[:, None, None]]
    is_same = (key - first).floor_divide(4) == (row - first).floor_divide(4)
    return scores.masked_fill(~(is_same & (key <= row))[:, None], -INF)


def weighed(scores):
    """It adds minus infinity on the diagonal as well."""
    row, key = numbers(scores)
    return scores + torch.where(key > row, -INF, 0.0) + torch.where(key == row, -INF, 0.0)


OTHERS = [none_of_first, before, window_before, padded, of_unknown, in_less_bits, cut, cut_row,
          cut_size, cut_constant, shifted, chunks, weighed]  # fmt: skip


def attention(masked):
    def compiled(q, k, v, past=None):
        if past is not None:
            k, v = (torch.cat((past, side), -2) for side in (k, v))
        return masked(q @ k.mT).softmax(-1) @ v

    return compiled


def operands(size, past=0):
    sides = [torch.randn(2, 4, size, 8) for _ in range(3)]
    return [*sides, torch.randn(2, 4, past, 8)] if past else sides


def codes(masked):
    leaves = [one.requires_grad_() for one in operands(17)]
    return rewrite(attention(masked), *leaves, dynamic=True, softmax="sdpa").codes


@pytest.mark.parametrize("masked", [tril, compared, window, added, turned])
def test_each_row_has_its_own_key(masked):
    assert codes(masked) == ["fused"]


@pytest.mark.parametrize("masked", [triu, last_rows, documents])
def test_training_is_fused_for_all_sizes(masked):
    """Mutants: the diagonal of a triangle is one further; a last row has another key."""
    past = 3 if masked is last_rows else 0
    function = attention(masked)
    torch.manual_seed(0)
    leaves = [one.requires_grad_() for one in operands(17, past)]
    done = rewrite(function, *leaves, dynamic=True, softmax="sdpa")
    for size in (17, 2, 64, 1):
        sides = operands(size, past)
        weights = torch.randn(sides[0].shape)
        found = results(done.function, sides, weights)
        wanted = results(function, [side.double() for side in sides], weights.double())
        for one, exact in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-5)
        if size != 1:
            assert done.codes == ["fused"]
    assert len(done.after) <= 2  # Dynamo has a graph of its own for sizes of one


@pytest.mark.parametrize("masked", OTHERS)
def test_where_a_row_may_keep_no_key_it_is_asked(masked):
    """Mutants: a comparison holds of what is not known, or of numbers with a fraction; one mask of
    two is enough; what another dtype holds is what was cast to it: of tensors, of numbers, of a
    row's, of sizes, of large ones; sums have places of what is summed."""
    assert codes(masked) == ["fused_if_kept"]


def test_of_fewer_keys_than_rows_it_is_asked():
    """Mutant: it is not compared how many there are."""

    def crossed(q, k, v):
        scores = q @ k.mT
        row, key = numbers(scores)
        return scores.masked_fill(key > row - (row.shape[0] - key.shape[1]), -INF).softmax(-1) @ v

    q, (_, k, v) = operands(9)[0], operands(17)
    done = rewrite(crossed, q.requires_grad_(), k, v, dynamic=True, softmax="sdpa")
    assert done.codes == ["fused_if_kept"]


@pytest.mark.long
def test_a_model_that_makes_its_mask():
    """Its mask holds where numbers of documents, counted in the graph, are equal as well."""
    model = build(FAMILIES["llama"], "eager")
    ids = torch.randint(0, VOCABULARY, (2, 20))
    done = rewrite(lambda ids: model(input_ids=ids).logits, ids, dynamic=True, softmax="sdpa")
    assert done.codes == ["fused"]
    ids = torch.randint(0, VOCABULARY, (2, 33))
    found, wanted = done.function(ids), model(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(done.after) == 1
