"""Causal attention on processors: torch's own, for some rows at a time over the keys they see."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.runtime.attention import library
from tests.attention.rewriting import rewrite

SPEC = AttentionSpec("float32", 16, 16, groups=2, scale=0.25, after=0)


def operands(rows: int, keys: int) -> list[torch.Tensor]:
    """Of heads behind rows in memory, as models have them; one row of queries is NaN."""
    torch.manual_seed(0)
    shapes = [(1, rows, 4, 16), *[(1, keys, 2, 16)] * 2]
    q, k, v = (torch.randn(shape).transpose(1, 2) for shape in shapes)
    q[0, 1, rows // 2] = math.nan
    return [q, k, v]


def attend(q, k, v):
    k, v = (side.repeat_interleave(2, 1) for side in (k, v))
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    scores = (0.25 * q @ k.transpose(-1, -2)).masked_fill(later, torch.finfo(torch.float32).min)
    return scores.softmax(-1) @ v


def error(found: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """Against float64; infinite where only one is NaN."""
    wanted = attend(*(side.double() for side in (q, k, v)))
    if not torch.equal(found.isnan(), wanted.isnan()):
        return math.inf
    return (found - wanted).nan_to_num(0.0).abs().max().item()


SIZES = [(128, 128), (300, 300), (65, 200), (200, 100)]


def by_rows(rows: int, keys: int) -> float:
    """The error of a call."""
    inputs = operands(rows, keys)
    return error(library.attention_by_fused(SPEC, *inputs, [], None), *inputs)


@pytest.mark.parametrize(("rows", "keys"), SIZES)
def test_any_number_of_rows_and_keys(rows, keys):
    assert by_rows(rows, keys) < 1e-5


@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_a_key_that_is_no_number_reaches_no_row_before_it(what):
    """Mutant: it is not looked for, and rows of the same call are NaN."""
    inputs = operands(300, 300)
    inputs[1][0, 0, 290] = what
    assert error(library.attention_by_fused(SPEC, *inputs, [], None), *inputs) < 1e-5


def test_rows_that_are_masked_otherwise_are_wrong(monkeypatch):
    """The mutant whose mask lies a key further."""
    attention = F.scaled_dot_product_attention

    def later(q, k, v, attn_mask, **named):
        return attention(q, k, v, attn_mask=attn_mask.roll(1, -1), **named)

    monkeypatch.setattr(library.F, "scaled_dot_product_attention", later)
    assert not any(by_rows(rows, keys) < 1e-5 for rows, keys in SIZES)


def test_no_call_is_given_keys_that_none_of_its_rows_sees(monkeypatch):
    """Mutant: all are given all keys."""
    given, attention = [], F.scaled_dot_product_attention

    def noting(q, k, *others, **named):
        given.append((q.shape[2], k.shape[2]))
        return attention(q, k, *others, **named)

    monkeypatch.setattr(library.F, "scaled_dot_product_attention", noting)
    by_rows(300, 300)
    assert given == [(64, 64), (64, 128), (64, 192), (64, 256), (44, 300)]


def test_what_a_model_spells_out_is_computed_so():
    inputs = operands(384, 384)
    with torch.no_grad():
        done = rewrite(attend, *inputs)
        assert done.codes == ["fused_rows"]
        assert error(done.function(*inputs), *inputs) < 1e-5
    assert rewrite(attend, *operands(383, 383)).codes == ["fused"]
    inputs[0].requires_grad_()
    assert rewrite(attend, *inputs).codes == ["fused"], "gradients are those of torch's kernel"
