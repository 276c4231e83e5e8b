"""Merged, removed and hidden collectives over real gloo ranks: values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from tests.targets import SLOW_LINK

ROWS, INNER, COLUMNS = 96, 64, 32
FIXED_AND_VARYING = pytest.mark.parametrize(
    "rows",
    [pytest.param((ROWS,), marks=pytest.mark.long), (ROWS, 33, 128)],
    ids=["fixed", "varying"],
)
"""Of fixed sizes are the golden texts of every run."""


class Copied(torch.autograd.Function):
    """The identity, whose gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        (gradient,) = gradients
        return functional.all_reduce(gradient, "sum", dist.group.WORLD)


def column_wise(x, weights, alone):
    """Three column-wise layers of one input, and a collective among one rank."""
    q, k, v = (Copied.apply(x) @ weight for weight in weights)
    return functional.all_reduce(q.sin() * k.cos() + v, "sum", alone)


def train(rank, rows):
    """Errors of gradients against eager in float64 for several row counts, and what was done."""
    import overlapc

    groups = [dist.new_group([one]) for one in range(2)]
    generator = torch.Generator().manual_seed(rank)
    weights = [
        torch.randn(INNER, COLUMNS, generator=generator, requires_grad=True) for _ in range(3)
    ]
    torch._dynamo.reset()
    compiled = torch.compile(
        column_wise, backend="overlapc", options={"target": SLOW_LINK}, dynamic=len(rows) > 1
    )
    errors = []
    for count in rows:
        shared = torch.Generator().manual_seed(count)
        x = torch.randn(count, INNER, generator=shared).requires_grad_()
        slope = torch.randn(count, COLUMNS, generator=generator)
        wide = [value.detach().double().requires_grad_() for value in (x, *weights)]
        found = torch.autograd.grad(compiled(x, weights, groups[rank]), (x, *weights), slope)
        exact = column_wise(wide[0], wide[1:], groups[rank])
        wanted = torch.autograd.grad(exact, wide, slope.double())
        errors += [
            ((one.double() - other).norm() / other.norm()).item()
            for one, other in zip(found, wanted, strict=True)
        ]
    codes = [(site.graph, site.code) for site in overlapc.report().sites]
    return errors, codes


@FIXED_AND_VARYING
def test_gradients_are_right_and_sent_once(two_ranks, rows):
    for errors, codes in two_ranks.run(train, rows):
        assert max(errors) < 1e-5
        assert ("forward", "one_rank") in codes
        backward = [code for graph, code in codes if graph == "backward"]
        assert backward[-3:] == ["merged", "merged", "hidden_by_order"]


def gather(x):
    """Along columns, spelled so that torch 2.11 does not break the graph."""
    return torch.cat(functional.all_gather_tensor(x, 0, dist.group.WORLD).chunk(2), 1)


def reduce(x):
    return functional.all_reduce(x, "sum", dist.group.WORLD)


def sums(x, y, weight, scale):
    """Gathers along columns, and reductions scaled by a tensor that each rank has of its own."""
    return gather(x) - gather(y), reduce(x @ weight) * scale + 2 * (reduce(y @ weight) * scale)


def add_up(rank, rows):
    import overlapc

    torch._dynamo.reset()
    compiled = torch.compile(
        sums, backend="overlapc", options={"target": SLOW_LINK}, dynamic=len(rows) > 1
    )
    generator = torch.Generator().manual_seed(rank)
    errors, told = [], len(overlapc.report().sites)
    with torch.no_grad():
        for count in rows:
            shapes = (count, INNER), (count, INNER), (INNER, COLUMNS), (COLUMNS,)
            values = [torch.randn(shape, generator=generator) for shape in shapes]
            wanted = sums(*(value.double() for value in values))
            errors += [
                ((one.double() - other).norm() / other.norm()).item()
                for one, other in zip(compiled(*values), wanted, strict=True)
            ]
    return errors, [site.code for site in overlapc.report().sites[told:]]


@FIXED_AND_VARYING
def test_sums_of_gathers_and_of_what_is_scaled_are_right_and_sent_once(two_ranks, rows):
    for errors, codes in two_ranks.run(add_up, rows):
        assert max(errors) < 1e-6
        assert codes.count("merged") == 2
        assert len(codes) == 4
