"""How far a linear layer reaches: what is read with its product, and what ends it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from overlapc.graphs.linear.joint import join
from overlapc.graphs.linear.layers import linear_gemms, read_linear
from overlapc.runtime.linear.widening import loaded
from overlapc.runtime.programs import execution
from tests.passes.linear_spellings import (
    INNER,
    ROWS,
    WIDE,
    weight,
)

pytestmark = pytest.mark.usefixtures("inference")


def written_between(x, w):
    y = x @ w
    x.mul_(2)
    return F.relu(y)


def widen(w):
    return torch.ops.prims.convert_element_type.default(w, torch.float32)


def written_after_widening(x, w):
    wide = widen(w)
    w.mul_(2)
    return x @ wide


def permuted(x, w, order):
    return x @ torch.ops.aten.permute.default(widen(w), order)


def written_between_two(x, w, v):
    y = x @ w
    x.mul_(2)
    return y, x @ v


def needed_by_another(x, w, v):
    y = x @ w
    return y, torch.addmm(y[0], x, v)


@pytest.mark.parametrize(
    ("function", "joins"),
    [(lambda x, w, v: (x @ w, x @ v), True), (needed_by_another, False),
     (written_between_two, False)],
    ids=["", "needed", "written"],
)  # fmt: skip
def test_what_one_launch_computes_beside(function, joins):
    inputs = (weight(ROWS, WIDE), weight(WIDE, INNER), weight(WIDE, INNER))
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    one, two = (read_linear(node, lambda layer: True) for node in linear_gemms(graph))
    assert (join(one, two) is not None) == joins


def read(function, *inputs):
    """The layer of a graph as it is traced, in which writes in place stay."""
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    (gemm,) = (node for node in graph.nodes if node.target is torch.ops.aten.mm.default)
    return read_linear(gemm, lambda layer: True)


@pytest.mark.parametrize("looks", [True, False], ids=["", "mutant"])
def test_what_is_written_between_ends_a_layer(monkeypatch, looks):
    if not looks:
        monkeypatch.setattr("overlapc.graphs.linear.layers._Reader._is_crossed", lambda *_: False)
    found = read(written_between, weight(ROWS, WIDE), weight(WIDE, INNER))
    assert found.after == (() if looks else ("relu",))


@pytest.mark.parametrize("looks", [True, False], ids=["", "mutant"])
def test_a_weight_that_is_written_after_it_was_widened_is_refused(monkeypatch, looks):
    if not looks:
        monkeypatch.setattr("overlapc.graphs.linear.layers._Reader._is_crossed", lambda *_: False)
    held = torch.ones(WIDE, INNER, dtype=torch.int8)
    found = read(written_after_widening, weight(ROWS, WIDE), held)
    assert getattr(found, "code", "taken") == ("written" if looks else "taken")


def scale_cast(x, w, scale, is_written):
    narrow = torch.ops.prims.convert_element_type(scale, torch.bfloat16)
    if is_written:
        scale.mul_(2)
    y = torch.mm(x, w)
    return (y.relu() * narrow + narrow).sin()


RELU_TO_SIN = ("relu", "convert_element_type", "mul", "add", "sin")


def test_the_cast_of_a_scale_is_made_in_the_op():
    """Where it is used first, for both that use it."""
    x, w, scale = weight(ROWS, WIDE).bfloat16(), weight(WIDE, INNER).bfloat16(), weight(INNER)
    layer = partial(scale_cast, is_written=False)
    found = read(layer, x, w, scale)
    assert found.after == RELU_TO_SIN
    (value,) = execution.function(found.program)([x, w, scale], ())
    assert torch.equal(value, layer(x, w, scale))


@pytest.mark.parametrize("looks", [True, False], ids=["", "mutant"])
def test_a_scale_that_is_written_after_its_cast_ends_a_layer(monkeypatch, looks):
    if not looks:
        monkeypatch.setattr("overlapc.graphs.linear.layers._Reader._is_crossed", lambda *_: False)
    x, w = weight(ROWS, WIDE).bfloat16(), weight(WIDE, INNER).bfloat16()
    found = read(partial(scale_cast, is_written=True), x, w, weight(INNER))
    # Where the op does not make the cast, which others read still, it may go on.
    assert found.after == (("relu", "mul") if looks else RELU_TO_SIN)


def test_what_others_read_of_a_second_product_is_given_to_what_follows_the_first():
    """The mutant that takes the second product along ends the layer at the first."""

    def gated(x, w, v):
        gate, up = x @ w, x @ v
        return gate.sigmoid() * up, up

    inputs = (weight(ROWS, WIDE), weight(WIDE, INNER), weight(WIDE, INNER))
    gate, up = linear_gemms(make_fx(gated, tracing_mode="fake")(*inputs).graph)
    found = read_linear(gate, lambda layer: True)
    assert (found.after, len(found.gemms)) == (("sigmoid", "mul"), 1)
    assert up in [operand.node for operand in found.operands]


def test_a_permutation_that_changes_nothing_is_no_transposition():
    """The mutant that looks for any permute reads a square weight transposed."""
    for order, is_turned in (((0, 1), False), ((1, 0), True), ((-1, -2), True)):
        function = partial(permuted, order=order)
        found = read(function, weight(ROWS, WIDE), torch.ones(WIDE, WIDE, dtype=torch.int8))
        assert [one.is_turned for one in loaded(found.program).held] == [is_turned]
