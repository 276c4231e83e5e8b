"""Option ``verify`` on real ranks: unlike sizes of torch's own collectives are one clear error."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import overlapc
from overlapc.errors import DisagreementError
from tests.targets import FAST_LINK, SLOW_LINK, machine

c10d = torch.ops._c10d_functional
MIDDLE = machine("middle-link", 4e8)
SECONDS = 20.0
"""More than a test may take: who waited for a rank that does not come fails it."""


def compiled(function, target=FAST_LINK, **options):
    torch._dynamo.reset()
    options = {"target": target, "verify": True, "agreement_seconds": SECONDS, **options}
    return torch.compile(function, backend="overlapc", options=options)


def world():
    return dist.group.WORLD


def exchanged(x):
    return functional.all_to_all_single(x, None, None, world())


def coalesced(x):
    first, second = functional.all_reduce_coalesced([x[:2], x], "max", world())
    return first.sum() + second


KINDS = {
    "all_reduce": lambda x: functional.all_reduce(x, "sum", world()),
    "reduce_scatter_tensor": lambda x: functional.reduce_scatter_tensor(x, "sum", 0, world()),
    "all_gather_into_tensor": lambda x: functional.all_gather_tensor(x, 0, world()),
    "all_to_all_single": exchanged,
    "broadcast": lambda x: functional.broadcast(x, 1, world()),
    "all_reduce_coalesced": coalesced,
}
ROWS = 8


def every_kind(*tensors):
    """One collective of each kind, every one of a tensor of its own."""
    return [kind(tensor) for kind, tensor in zip(KINDS.values(), tensors, strict=True)]


def differing_in_turn(rank):
    """What a call says where one tensor has more rows on rank 1: of each in turn, and of none."""
    torch.manual_seed(rank)
    function = compiled(every_kind)

    def called(odd, rows):
        tensors = [torch.randn(rows + (2 * rank if kind == odd else 0), 3) for kind in KINDS]
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
        try:
            found, wanted = function(*tensors), every_kind(*tensors)
        except DisagreementError as error:
            return str(error)
        assert all(map(torch.allclose, found, wanted))
        return ""

    started = time.monotonic()
    said = [called("", ROWS), *(called(kind, ROWS + 2) for kind in KINDS), called("", ROWS + 4)]
    return said, time.monotonic() - started


def test_every_kind_of_collective_is_compared(two_ranks):
    for said, taken in two_ranks.run(differing_in_turn):
        first, *errors, last = said
        assert not first + last
        assert taken < SECONDS + 20
        for kind, error in zip(KINDS, errors, strict=True):
            if kind == "all_to_all_single":  # each rank's rows are told by rank
                assert "ranks expect other rows than are sent" in error
                assert "sends 5/5, receives 5/5" in error
                assert "sends 6/6, receives 6/6" in error
                assert "as many rows as that one sends to it" in error
                continue
            assert "the sizes of a call differ" in error
            assert f"Rank 0: torch's {kind}" in error
            assert "10x3 float32" in error
            assert "12x3 float32" in error
            assert "pad what is shorter" in error
            assert "test_verified.py:" in error
            assert "installation" not in error


def unlike(rank, function, target, shapes, options):
    """What a graph of numbers says, with other shapes on each rank; then it is called alike."""
    torch.manual_seed(rank)
    said = ""
    try:
        compiled(function, target, **options)(*map(torch.randn, shapes[rank]))
    except DisagreementError as error:
        said = str(error)
    codes = {site.code for site in overlapc.report().sites}
    alike = compiled(function, target, **options)(*map(torch.randn, shapes[0]))
    assert all(part.isfinite().all() for part in alike)
    return said, codes


def kept(x, w):
    return (functional.all_reduce(x @ w, "sum", world()),)


def hidden(x, w):
    return functional.all_reduce(x.sin(), "sum", world()).cos(), x @ w


def merged(x, w):
    return (
        functional.all_reduce(x, "sum", world()) + functional.all_reduce(x * 2, "sum", world()),
    )


STAY = {
    "kept": (kept, FAST_LINK, "serial_nothing_to_hide"),
    "hidden": (hidden, SLOW_LINK, "hidden_by_order"),
    "merged": (merged, SLOW_LINK, "merged"),
}
MORE_ROWS = [[(512, 64), (64, 128)], [(514, 64), (64, 128)]]


@pytest.mark.parametrize("name", STAY)
def test_collectives_that_stay_are_compared(name, two_ranks):
    function, target, code = STAY[name]
    for said, codes in two_ranks.run(unlike, function, target, MORE_ROWS, {}):
        assert code in codes
        assert "the sizes of a call differ" in said
        assert "Rank 0: torch's all_reduce sum of 512x" in said
        assert "Rank 1: torch's all_reduce sum of 514x" in said


def summed(x):
    return (functional.all_reduce(x, "sum", world()),)


AS_MANY = [[(4, 6)], [(6, 4)]]
"""gloo adds these up as they lie in memory."""


def test_shapes_of_as_many_elements_are_told_apart(two_ranks):
    for said, _ in two_ranks.run(unlike, summed, SLOW_LINK, AS_MANY, {}):
        assert "Rank 0: torch's all_reduce sum of 4x6 float32" in said


def test_without_the_pass_they_are_not(two_ranks):
    """The mutant: nothing else compares them."""
    without = {"disable": ("verify_sizes",)}
    for said, _ in two_ranks.run(unlike, summed, SLOW_LINK, AS_MANY, without):
        assert not said


def uneven(rank, fits):
    """A dispatch whose splits are numbers, and of which one rank expects a row too many."""
    receives, sends = ([4, 1], [4, 6]) if rank == 0 else ([6, 5 if fits else 6], [1, 5])

    def dispatched(x):
        return functional.all_to_all_single(x, receives, sends, world())

    return compiled(dispatched)(torch.full((sum(sends), 3), float(rank))).sum().item()


def test_rows_of_an_uneven_all_to_all_have_to_meet(two_ranks):
    assert two_ranks.run(uneven, True) == [3.0, 15.0]
    for _, error in two_ranks.outcomes(uneven, False):
        assert "DisagreementError" in error
        assert "ranks expect other rows than are sent" in error
        assert "sends 1/5, receives 6/6" in error
    assert two_ranks.run(uneven, True) == [3.0, 15.0]


def mixed(x, w):
    return (functional.all_reduce((x @ w).cumsum(0), "sum", world()),)


def one_rewrites(rank):
    """The second graph on a group adds up rows on rank 0 first, so that rank 1 alone cuts it."""
    torch.manual_seed(rank)
    started, said = time.monotonic(), []
    for number in range(3):
        x, w = torch.randn(512, 64), torch.randn(64, 128)
        try:
            (found,) = compiled(mixed if (rank, number) == (0, 1) else kept, MIDDLE)(x, w)
        except DisagreementError as error:
            said.append(str(error))
            continue
        wanted = x.double() @ w.double()
        dist.all_reduce(wanted)
        said.append(((found.double() - wanted).norm() / wanted.norm()).item())
    return said, time.monotonic() - started


def test_a_rank_that_rewrote_meets_one_that_did_not(two_ranks):
    for (before, error, after), taken in two_ranks.run(one_rewrites):
        assert max(before, after) < 1e-5
        assert taken < SECONDS
        assert "they send a collective differently" in error
        assert "Rank 0: torch's all_reduce sum of 512x128 float32" in error
        assert "Rank 1: overlapc's gemm_all_reduce sum of 512x128 float32" in error
        assert "equal sizes" in error


class Columns(torch.autograd.Function):
    """A column-wise linear layer: only its backward communicates."""

    @staticmethod
    def forward(ctx, x, w, group):
        ctx.save_for_backward(x, w)
        ctx.group = group
        return x @ w

    @staticmethod
    def backward(ctx, *gradients):
        x, w = ctx.saved_tensors
        summed = functional.all_reduce(gradients[0] @ w.t(), "sum", ctx.group)
        return summed, x.t() @ gradients[0], None


def backward_only(rank, rows):
    group = dist.new_group([0, 1])  # on which nothing was agreed yet
    x = torch.randn(rows[rank], 64, requires_grad=True)
    w = torch.randn(64, 128, requires_grad=True)
    function = compiled(lambda x, w: Columns.apply(x, w, group).sin())
    function(x, w).sum().backward()
    return x.grad is not None


def test_a_backward_graph_alone_is_compared(two_ranks):
    assert two_ranks.run(backward_only, (32, 32)) == [True, True]
    for _, error in two_ranks.outcomes(backward_only, (32, 34)):
        assert "DisagreementError" in error
        assert "Rank 1: torch's all_reduce sum of 34x64 float32" in error
