"""Scales that are tensors, one number of each head as of Swin v2: torch's attention takes none."""

from __future__ import annotations

import pytest
import torch

from tests.attention.catalogue import plain
from tests.attention.rewriting import rewrite
from tests.attention.sizes import H
from tests.attention.test_catalogue import assert_alike, wide


def multiplied(q, k, v, scale):
    return ((0.3 * (q @ k.mT)) * scale.exp() * 0.7).masked_fill(later(q, k), -9e9).softmax(-1) @ v


def divided(q, k, v, scale):
    """One number of all, and heads that are two dimensions."""
    q, k, v = (side.unflatten(1, (2, H // 2)) for side in (q, k, v))
    return (0.3 * ((q @ k.mT) / scale[0, 0, 0])).softmax(-1) @ v


def of_groups(q, k, v, scale):
    q, k, v = (side.unflatten(1, (2, H // 2)) for side in (q, k, v))
    return (scale.unflatten(0, (2, H // 2)) * (q @ k.mT)).softmax(-1) @ v


def later(q, k):
    return torch.ones(q.shape[-2], k.shape[-2]).triu(3).bool()


def added(q, k, v, scale):
    return (q @ k.mT + scale).tanh().softmax(-1) @ v


def scaled_twice(q, k, v, scale):
    return (q @ k.mT * scale * scale.exp()).softmax(-1) @ v


def squared(q, k, v, scale):
    s = q @ k.mT
    return (s * s * scale).softmax(-1) @ v


def bent_beside(q, k, v, scale):
    s = q @ k.mT
    return (s * scale + s.tanh()).softmax(-1) @ v


def inverse(q, k, v, scale):
    return (scale / (q @ k.mT)).softmax(-1) @ v


def operands(dtype=torch.float32):
    torch.manual_seed(0)
    return [*plain(dtype=dtype), torch.rand(H, 1, 1, dtype=dtype) + 0.5]


@pytest.mark.parametrize("function", [multiplied, divided, of_groups])
def test_rows_of_queries_are_multiplied_first(function):
    """Mutants: the tensor is left out; a quotient is a product; the number behind it is one."""
    *sides, scale = operands()
    leaves = [side.requires_grad_() for side in sides]
    done = rewrite(function, *leaves, scale)
    assert done.codes == ["fused"]
    doubles = [wide(side.detach()).requires_grad_() for side in leaves]
    results = done.function(*leaves, scale), function(*doubles, wide(scale))
    assert_alike(*results, torch.float32, times=2)
    weights = torch.randn_like(results[0])
    found = torch.autograd.grad(results[0], leaves, weights)
    wanted = torch.autograd.grad(results[1], doubles, weights.double())
    for one, other in zip(found, wanted, strict=True):
        assert_alike(one, other, torch.float32, times=4)


@pytest.mark.parametrize("function", [added, scaled_twice, squared, bent_beside, inverse])
def test_what_does_more_is_no_scale(function):
    """Mutants: any function of one tensor is a scale; calls after it are not seen;
    a quotient the other way round is one."""
    done = rewrite(function, *operands())
    assert done.codes == ["!score_function"]
    assert done.after == done.before


def test_a_scale_that_is_trained_stays():
    """Mutant: without asking, its gradient is a sum over queries, a digit less exact."""
    given = [side.requires_grad_() for side in operands()]
    assert rewrite(multiplied, *given).codes == ["!score_function"]
    with torch.no_grad():
        assert rewrite(multiplied, *given).codes == ["fused"]


def test_queries_of_narrow_dtypes_would_be_rounded_once_more():
    """Mutant: any dtype will do."""
    assert rewrite(multiplied, *operands(torch.bfloat16)).codes == ["!score_function"]
