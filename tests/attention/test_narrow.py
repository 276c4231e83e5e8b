"""A cache in a narrow dtype is read as it is where the graph only widens it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from overlapc.graphs.attention import problems
from tests.attention.narrow_cache import (
    KEYS,
    by_one_call,
    halved,
    of_heads,
    of_one_key,
    one_key,
    operands,
    rescaled,
    rows_first,
    scaled,
    spelled,
    transposed,
    written,
)
from tests.attention.rewriting import rewrite

HEADS_AND_ROWS = (4, 1), (2, 64), (2, 64)
READS = "of keys and values in float8_e4m3fn as a cache holds them"


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Sites are decided as where generated kernels run; they are run by torch's ops."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


def rewritten(function, *inputs):
    with torch.no_grad():
        wanted = function(*(side.clone() for side in inputs))
        done = rewrite(function, *(side.clone() for side in inputs), softmax="unified")
        torch.testing.assert_close(done.function(*inputs), wanted)
    assert done.calls("overlapc.attention.default") == 1
    return done


def test_a_scale_that_is_written_to_before_the_result_is_not_read_later():
    done = rewrite(rescaled, *operands(), torch.rand(1), softmax="unified")
    assert READS not in done.sites[0].reason


class Grouped(torch.nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k.float(), v.float(), enable_gqa=True)


def test_heads_that_are_multiplied_before_they_are_read_are_widened():
    """As torch decomposes it. Mutant: numbers of eight bits are multiplied, which torch cannot."""
    queries, keys, values = (torch.randn(2, heads, rows, 16) for heads, rows in HEADS_AND_ROWS)
    inputs = queries, *(side.to(torch.float8_e4m3fn) for side in (keys, values))
    module = torch.export.export(Grouped(), inputs).run_decompositions().module()
    done = rewritten(module, *inputs)
    assert "2x4/2x1x64x16" in done.sites[0].shape
    assert READS not in done.sites[0].reason


@pytest.mark.parametrize("function", [spelled, by_one_call])
def test_the_op_is_given_the_cache(function, golden):
    done = rewritten(function, *operands())
    assert READS in done.sites[0].reason
    golden(done.after[0])


SCALED = {
    "one number": (scaled, lambda: of_heads(())),
    "one of each head": (scaled, of_heads),
    "rows first": (rows_first, transposed),
    "a constant": (halved, operands),
}


@pytest.mark.parametrize("name", SCALED)
def test_scales_are_given_beside_the_cache(name, golden):
    function, make = SCALED[name]
    done = rewritten(function, *make())
    assert READS in done.sites[0].reason
    golden(done.after[0])


WIDENED = {
    "a scale of each key": (scaled, lambda: of_heads((KEYS, 1))),
    "a scale of each sequence": (scaled, lambda: of_heads((2, 1, 1, 1))),
    "a scale of each sequence, before keys are": (one_key, of_one_key),
    "another dtype": (spelled, lambda: operands(kind=torch.float8_e5m2)),
    "wide enough": (spelled, lambda: operands(kind=torch.float16)),
    "many rows": (spelled, lambda: operands(rows=70)),
    "two dtypes": (spelled, lambda: [*operands()[:2], operands(kind=torch.float8_e5m2)[2]]),
}


@pytest.mark.parametrize("name", WIDENED)
def test_what_is_read_is_what_was_widened(name):
    function, make = WIDENED[name]
    done = rewritten(function, *make())
    assert READS not in done.sites[0].reason


def test_with_gradients_it_is_widened():
    q, *cache = operands()
    done = rewrite(spelled, q.requires_grad_(), *cache, softmax="unified")
    assert (done.codes, READS in done.sites[0].reason) == (["unified"], False)


def test_a_cache_that_is_written_to_before_the_result_is_read_as_it_was_widened():
    """Mutant: who reads memory is told what was written there first."""
    with torch.no_grad():
        done = rewrite(written, *operands(), softmax="unified")
    assert (done.codes, READS in done.sites[0].reason) == (["unified"], False)


@pytest.mark.long
@pytest.mark.parametrize("name", ["narrow", "narrow, scaled"])
def test_the_kernel_reads_it(interpreted, name):
    _, code, calls, reason, _, error = interpreted("attention_graphs.run", name, "unified")
    assert (code, calls) == ("unified", {"zero, few rows, 1 split": 1})
    assert READS in reason
    assert error < 2e-6
