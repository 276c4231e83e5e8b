"""Layers that are refused, and what is none: the graph stays as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from overlapc.planning.linear.regions import Regions
from overlapc.tuning.linear import layers_of
from tests.passes.linear_spellings import (
    INNER,
    ROWS,
    WIDE,
    mlp,
    mlp_inputs,
    plain,
    rows_apart,
    weight,
)
from tests.passes.test_dispatch_linears import changed, said, stored

pytestmark = pytest.mark.usefixtures("inference")


def int8_two_columns(x, w, scale):
    """Of which two share a scale."""
    pairs = w.view(-1, 2, w.shape[1]).to(x.dtype) * scale
    return F.linear(x, pairs.view(w.shape))


def int8_zeros_between(x, w, scale, zero):
    """Of fewer bits than their difference from a weight, which no kernel computes."""
    return F.linear(x, (w.to(x.dtype) - zero) * scale)


def uint8_zeros_cast(x, w, scale, zero):
    """Of which the difference is rounded twice before it is scaled."""
    return F.linear(x, (w.to(x.dtype) - zero).to(torch.bfloat16) * scale)


def uint8_from_int8(x, w, scale, zero):
    """Whose difference takes nine bits."""
    return F.linear(x, (w.to(x.dtype) - zero.to(x.dtype)) * scale)


def int8_packed(x, w, scale):
    """Cut after it was widened, which is done once for all parts."""
    wide = w.to(x.dtype) * scale
    return F.linear(x, wide[:3]), F.linear(x, wide[3:])


REFUSED = {
    "rows_apart": (rows_apart, (weight(2, 3, 4), weight(4, 5))),
    "weight (packed)": (
        int8_packed,
        (weight(3, 4), torch.ones(6, 4, dtype=torch.int8), weight(6, 1)),
    ),
    "weight (zero points)": (
        int8_zeros_between,
        (weight(3, 4), torch.ones(6, 4, dtype=torch.int8), weight(6, 1), weight(6, 1).bfloat16()),
    ),
    "weight (zero points, cast)": (
        uint8_zeros_cast,
        (weight(3, 4), torch.ones(6, 4, dtype=torch.uint8), weight(6, 1), weight(6, 1)),
    ),
    "weight (zero points, mixed)": (
        uint8_from_int8,
        (
            weight(3, 4),
            torch.ones(6, 4, dtype=torch.uint8),
            weight(6, 1),
            torch.ones(6, 1, dtype=torch.int8),
        ),
    ),
    "weight": (
        int8_two_columns,
        (weight(3, 4), torch.ones(6, 4, dtype=torch.int8), weight(3, 1, 1)),
    ),
    "dtype": (plain, (weight(3, 4, dtype=torch.float64), weight(4, 5, dtype=torch.float64))),
    "strided_weight": (plain, (weight(3, 4), weight(4, 10)[:, ::2])),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refused(code, explained):
    """Mutants: batches whose rows lie apart are one matrix; a weight is not cut once widened."""
    function, inputs = REFUSED[code]
    report, changes = changed(explained, function, *inputs, linear="flat")
    assert ({*said(report)}, changes) == ({("refused", code.split()[0])}, False)


def test_a_product_of_what_the_graph_computes_is_no_linear_layer(explained):
    result = explained(lambda x, y: x @ (y + 1), weight(3, 4), weight(4, 5), linear="flat")
    assert result.report.sites == []
    # Nor is one by what is subtracted from after it is scaled.
    inputs = weight(3, 4), torch.ones(4, 5, dtype=torch.int8), torch.ones(5, dtype=torch.int8)
    result = explained(lambda x, w, z: x @ (w * 0.5 * x[0, 0] - z), *inputs, linear="flat")
    assert result.report.sites == []
    # Nor by one that it copies: the mutant that takes a clone for a part finds one.
    result = explained(
        lambda x, w: x @ w.t().reshape(4, 5), weight(3, 4), weight(4, 5), linear="flat"
    )
    assert result.report.sites == []
    # Nor by a weight that meets itself, or wraps around.
    for function in (
        lambda x, w, z: x @ (w.to(x.dtype) * w.to(x.dtype)),
        lambda x, w, z: x @ (w.float() - w),
        lambda x, w, z: x @ (w - z).float(),
        lambda x, w, z: x @ (w * z).float(),
    ):
        assert explained(function, *inputs, linear="flat").report.sites == []


def norm(x):
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)


def norm_and_more(x, w):
    y = norm(x)
    return F.linear(y, w), y + 1


@pytest.mark.parametrize(
    ("function", "dtypes"),
    [
        (lambda x, w: F.linear(norm(x).to(w.dtype), w), (torch.float32, torch.bfloat16)),
        (lambda x, w: F.linear(norm(x).to(w.dtype), w), (torch.bfloat16, torch.float32)),
        (norm_and_more, (torch.float32, torch.float32)),
    ],
    ids=["narrowed", "widened", "read by others"],
)
def test_norms_that_stay_in_the_graph(function, dtypes, explained):
    shapes = (ROWS, WIDE), (INNER, WIDE)
    inputs = [
        weight(*s, device="meta", dtype=dtype) for s, dtype in zip(shapes, dtypes, strict=True)
    ]
    result = explained(function, *inputs, linear="flat")
    ((_, after),) = result.graphs.values()
    assert "rsqrt" in after
    for layer in layers_of(function, inputs):
        assert layer.problem.dtype == str(dtypes[1]).removeprefix("torch.")


@pytest.mark.parametrize("sizes", [(5, 0), (0, 5)], ids=str)
@pytest.mark.parametrize("choice", ["flat", "auto"])
def test_an_empty_weight_is_refused(explained, sizes, choice):
    stored(layers_of(mlp, mlp_inputs()), Regions(1, 3, 9))
    report, changes = changed(explained, plain, weight(3, sizes[0]), weight(*sizes), linear=choice)
    assert (said(report), changes) == ([("refused", "empty")], False)


def test_gradients_of_weights_are_no_linear_layers(explained):
    """Their "weight" is an activation, and what they contract are the rows. A mutant that takes
    every input of a backward graph for a weight finds five sites."""
    with torch.enable_grad():
        x = weight(ROWS, WIDE)
        one, two = weight(INNER, WIDE).requires_grad_(), weight(WIDE, INNER).requires_grad_()

        def layers(x, one, two):
            return F.linear(F.linear(x.sin(), one).cos(), two)

        result = explained(layers, x, one, two, linear="flat")
    found = [(site.graph, site.shape.split()[0]) for site in result.report.sites]
    there, back = f"{ROWS}x{INNER}x{WIDE}", f"{ROWS}x{WIDE}x{INNER}"
    assert sorted(found) == sorted([("forward", there), ("forward", back), ("backward", there)])
