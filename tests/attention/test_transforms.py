"""What stands around an attention: transforms of ``torch.func``, and any number of calls above."""

from __future__ import annotations

import sys

import torch

from tests.attention.catalogue import plain
from tests.attention.rewriting import rewrite


def spelled(q, k, v):
    return (q @ k.mT * 0.3).softmax(-1) @ v


def test_transforms_are_named():
    operands = plain()
    several = operands[0].expand(2, *operands[0].shape)

    def mapped(q, k, v):
        return torch.vmap(spelled, in_dims=(0, None, None))(q, k, v)

    done = rewrite(mapped, several, *operands[1:])
    assert done.codes == ["!transformed"]
    assert "vmap" in done.sites[0].reason
    assert "backward()" in done.sites[0].reason


def test_what_stands_behind_one_is_read():
    """Mutant: views are looked for above every operand, inside of the transform too."""

    def function(q, k, v):
        mapped = torch.vmap(lambda v: v.mT.mT * 2)(v)
        return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).softmax(-1), mapped)

    operands = plain()
    done = rewrite(function, *operands)
    assert done.codes == ["fused"]
    torch.testing.assert_close(done.function(*operands), function(*operands))


def test_an_operand_may_be_far_from_the_inputs():
    """Mutant: views are looked for above every operand, call by call up to the inputs; the
    recursion ended in a fault of ours where a model was deep."""
    depth = sys.getrecursionlimit()

    def function(q, k, v):
        for _ in range(depth):
            q = q + 1e-3
        return (q @ k.mT).softmax(-1) @ v

    operands = plain()
    done = rewrite(function, *operands)
    assert done.codes == ["fused"]
    torch.testing.assert_close(done.function(*operands), function(*operands))
