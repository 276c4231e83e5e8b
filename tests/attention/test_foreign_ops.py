"""A name alone says nothing of an op that is not torch's, and its schema says what it writes to."""

from __future__ import annotations

import pytest
import torch

from tests.attention.catalogue import plain
from tests.attention.rewriting import rewrite


def turn(x, y):
    x.mul_(2)


@pytest.fixture(scope="module")
def ops():
    """Ops with the names of torch's that do something else."""
    library = torch.library.Library("foreign_attention", "DEF")
    library.define("softmax(Tensor x, int dim) -> Tensor")
    library.define("matmul(Tensor x, Tensor y) -> Tensor")
    library.define("turn(Tensor(a!) x, Tensor y) -> ()")
    library.impl("softmax", lambda x, dim: x.cos(), "CompositeExplicitAutograd")
    library.impl("matmul", lambda x, y: (x @ y).sign(), "CompositeExplicitAutograd")
    library.impl("turn", turn, "CompositeExplicitAutograd")
    torch.library.register_fake("foreign_attention::softmax", lambda x, dim: torch.empty_like(x))
    torch.library.register_fake("foreign_attention::matmul", lambda x, y: x @ y)
    torch.library.register_fake("foreign_attention::turn", lambda x, y: None)
    yield torch.ops.foreign_attention
    library._destroy()


def test_a_softmax_of_another_name_space_is_none(ops):
    def function(q, k, v):
        return ops.softmax(q @ k.mT, -1) @ v

    assert rewrite(function, *plain()).codes == []


def test_scores_of_a_product_of_another_name_space_are_none(ops):
    def function(q, k, v):
        return ops.matmul(q, k.mT).softmax(-1) @ v

    assert rewrite(function, *plain()).codes == []


@pytest.mark.parametrize("side", [0, 2])
def test_what_an_op_writes_to_is_what_its_schema_says(ops, side):
    """Mutant: only names that end as in place write."""

    def function(*sides):
        q, k, v = (t + 0 for t in sides)
        w = (q @ k.mT).softmax(-1)
        ops.turn((q, k, v)[side], w.detach())
        return w @ v

    def quiet(*sides):
        q, k, v = (t + 0 for t in sides)
        s = q @ k.mT
        ops.turn((q, k, v)[side], q)
        return s.softmax(-1) @ v

    operands = plain()
    assert not any(code == "fused" for code in rewrite(function, *operands).codes)
    done = rewrite(quiet, *operands)
    torch.testing.assert_close(done.function(*operands), quiet(*operands))
    # What an op is given beside may share memory with what it writes to, for all that is known.
    assert done.codes == ["!mutated_operand"]
