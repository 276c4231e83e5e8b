"""Whoever may read how a result lies finds it as eager leaves it, and what has no place is refused.

Mutants: `clone`, `reshape` or `flatten` are taken to be blind to strides; batches of values that
weights lack are not asked for; sinks are looked for in rows as in columns wherever scores may be.
"""

from __future__ import annotations

import pytest
import torch

from overlapc.graphs.attention import problems
from tests.attention.rewriting import rewrite

B, H, Q, K, D = 2, 3, 40, 48, 16


def attend(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


def turned(q, k, v):
    return v.mT @ (k @ q.mT).softmax(-2)


READERS = {
    "copied and viewed": lambda out: out.clone().view(B, -1),
    "copied": torch.clone,
    "copied and strided": lambda out: out.clone().as_strided((7,), (1,)),
    "flattened": lambda out: out.flatten(1, 2),
    "flattened and viewed": lambda out: out.flatten(1, 2).view(B, -1),
    "reshaped and strided": lambda out: out.reshape(B, H * out.shape[2], -1).as_strided((7,), (1,)),
    "exchanged and copied": lambda out: out.mT.clone(),
}


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    return [torch.randn(B, H, size, D) for size in (Q, K, K)]


@pytest.mark.parametrize("softmax", ["sdpa", "unified"])
@pytest.mark.parametrize("spelled", [attend, turned])
@pytest.mark.parametrize("reader", READERS)
def test_strides_are_those_of_eager(reader, spelled, softmax, drawn):
    def function(q, k, v):
        return READERS[reader](spelled(q, k, v))

    done = rewrite(function, *drawn, softmax=softmax)
    assert done.codes == [{"sdpa": "fused"}.get(softmax, softmax)]
    found, wanted = done.function(*drawn), function(*drawn)
    assert found.stride() == wanted.stride()
    torch.testing.assert_close(found, wanted)


def einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("softmax", ["sdpa", "unified"])
def test_one_sequence_has_any_stride(batch, softmax, drawn):
    """`einsum` says another one of it while compiling than when it runs."""
    given = [t[:batch].contiguous() for t in drawn]
    done = rewrite(einsum, *given, softmax=softmax)
    assert done.codes == [{"sdpa": "fused"}.get(softmax, softmax)]
    found, wanted = done.function(*given), einsum(*given)
    assert found.stride() == wanted.stride()
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("spelled", [attend, turned])
def test_values_of_more_batches_than_weights_are_refused(spelled, drawn):
    q, k, v = drawn
    done = rewrite(spelled, q[0], k[0], v, softmax="sdpa")
    assert done.codes == ["!value_batches"]
    torch.testing.assert_close(done.function(q[0], k[0], v), spelled(q[0], k[0], v))


def test_a_mask_that_is_made_of_a_row_more_is_no_sink(drawn):
    def function(q, k, v, e, zeros):
        mask = torch.cat([q[:, :, 1:] @ e, zeros], -2)
        return (mask + q @ k.mT).softmax(-1) @ v

    given = [*drawn, torch.randn(B, H, D, K), torch.zeros(B, H, 1, K)]
    done = rewrite(function, *given, softmax="sdpa")
    assert done.codes == ["fused"]
    torch.testing.assert_close(done.function(*given), function(*given))


def test_dimensions_may_be_named(drawn):
    """Mutant: the input is taken for a dimension."""

    def function(q, k, v):
        exchanged = torch.transpose(input=k, dim0=2, dim1=3)
        return (q @ exchanged).softmax(-1) @ torch.permute(input=v, dims=(0, 1, 2, 3))

    assert rewrite(function, *drawn, softmax="sdpa").codes == ["fused"]
