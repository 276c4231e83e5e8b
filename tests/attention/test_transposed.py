"""Scores that are spelled ``[..., keys, rows]`` are found, and give what eager gives.

Mutants beside those of the last test: an exchange on the way up or down that is not seen; a maximum
over the last dimension; a vector, the result of an einsum, labels of weights and a result that are
not exchanged; strides of a result as its own order has them.
"""

from __future__ import annotations

import pytest
import torch

from overlapc.graphs.attention import problems
from overlapc.graphs.attention.products.matmuls import Product
from overlapc.graphs.attention.scores import walk
from tests.attention.random_transposed import ALIKE, UNLIKE, draw
from tests.attention.rewriting import rewrite
from tests.attention.test_catalogue import assert_alike, wide

FEW, MANY = (0, 1, 2, 3, 5, 6), range(90)


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Sites are decided as where generated kernels run; they are run by torch's ops."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


def check(seed, sizes):
    drawn = draw(seed, sizes)
    code = "unified" if drawn.is_program or seed % 2 else "fused"
    done = rewrite(drawn.function, *drawn.inputs, softmax={"fused": "sdpa"}.get(code, code))
    assert done.codes == [code], f"{drawn.name}: {done.sites[0].reason}"
    found, eager = done.function(*drawn.inputs), drawn.function(*drawn.inputs)
    wanted = drawn.function(*map(wide, drawn.inputs)).double()
    try:
        assert found.stride() == eager.stride()
        assert_alike(found, wanted, torch.float32, 10.0)
    except AssertionError as error:
        raise AssertionError(f"{drawn.name}: {error}") from None


@pytest.mark.parametrize("seed", FEW)
def test_a_few(seed):
    check(seed, UNLIKE)


def test_one_whose_sizes_are_all_the_same():
    check(0, ALIKE)


@pytest.mark.long
@pytest.mark.parametrize("sizes", [UNLIKE, ALIKE], ids=["unlike", "alike"])
@pytest.mark.parametrize("seed", MANY)
def test_many(seed, sizes):
    check(seed, sizes)


def as_spelled(beside, places, dims):
    return beside


MUTANTS = {
    "masks are not transposed": (walk, "_usual", as_spelled),
    "queries are keys": (Product, "transposed", lambda product: product),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_shows_where_no_shape_tells(name, monkeypatch):
    where, what, mutant = MUTANTS[name]
    monkeypatch.setattr(where, what, mutant)
    with pytest.raises(AssertionError, match=r"<=|isnan"):
        any(check(seed, ALIKE) for seed in FEW)
