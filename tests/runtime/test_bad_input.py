"""Operands that do not fit, ranks that differ, groups of some ranks, rare sizes and dtypes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from overlapc.errors import KernelError, OverlapcError
from overlapc.planning.tiles import Tile
from overlapc.runtime import reference
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Step
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.spec import ChainSpec
from tests.ranks import Ranks
from tests.runtime.chains import call, chain, errors_of, poisoned, ragged
from tests.runtime.programs.cases import CASES, MM, operand, value
from tests.targets import SLOW_LINK

CONSUMER = Program(MM.modes, MM.steps, None, (value(0), operand(0)))
CASTING = Program(
    (ROWS, WHOLE),
    (*MM.steps, Step("prims.convert_element_type.default", (value(0), torch.int32))),
    value(1),
)


def spec(kind, **more) -> ChainSpec:
    program = CONSUMER if kind.endswith("gemm") else MM
    return chain(kind, program, SLOW_LINK, **{"wait_seconds": 20.0, **more})


def tensors(units, k=8, n=6, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + units)
    made = torch.randn(units, k, generator=generator), torch.randn(k, n, generator=generator)
    if dtype.is_complex:
        return [torch.complex(t, t.flip(0)).to(dtype) for t in made]
    return [(t if dtype.is_floating_point else 20 * t).to(dtype) for t in made]


# Refused on this rank before anything is sent

MISFITS = {
    "odd rows": ("gemm_reduce_scatter", (tensors(5),), "5 rows are not 1 times the same"),
    "odd blocks": ("gemm_reduce_scatter", (tensors(8), 3), "8 rows are not 3 times the same"),
    "odd rows to exchange": ("gemm_all_to_all", (tensors(7),), "7 rows are not"),
    "odd rows to compute with": ("all_to_all_gemm", (tensors(7),), "7 rows are not"),
    "no blocks": ("gemm_all_to_all", (tensors(8), 0), "8 rows are not 0 times"),
    "sum of sends": ("gemm_all_to_all", (tensors(8), 1, [3, 3], [3, 3]), "has 8 rows to send"),
    "one size": ("gemm_all_to_all", (tensors(8), 1, [8], [8]), "Rank "),
    "negative": ("all_to_all_gemm", (tensors(8), 1, [10, -2], [10, -2]), "Rank "),
    "own rows": ("all_to_all_gemm", (tensors(8), 1, [5, 5], [4, 4]), "has 8 rows to send"),
    "uneven blocks": ("gemm_all_to_all", (tensors(8), 2, [4, 4], [4, 4]), "Only whole rows"),
    "contraction": (
        "gemm_all_reduce",
        ([torch.ones(4, 3), torch.ones(5, 6)],),
        "same reduction",
    ),
}


def misfits(rank):
    started, messages = [], {}
    original = Sender.start
    Sender.start = lambda self, *args: started.append(args) or original(self, *args)
    try:
        for name, (kind, args, _) in MISFITS.items():
            try:
                call(spec(kind), *args)
            except RuntimeError as error:
                messages[name] = str(error)
    finally:
        Sender.start = original
    return messages, len(started)


def test_what_does_not_fit_is_refused_before_anything_is_sent(two_ranks):
    for messages, started in two_ranks.run(misfits):
        assert started == 0
        for name, (_, _, wanted) in MISFITS.items():
            assert wanted in messages[name], name


def test_columns_that_cannot_be_dealt_out_are_refused(fake_group):
    batched = chain("gemm_all_to_all", CASES["bmm"].producer(), SLOW_LINK, axis=1)
    with pytest.raises(OverlapcError, match="Columns of"):
        call(batched, [torch.ones(3, 5, 4), torch.ones(3, 4, 2)])


def test_operands_of_different_row_counts_are_refused(fake_group):
    rich = chain("gemm_all_reduce", CASES["addmm_rows"].producer(), SLOW_LINK)
    with pytest.raises(OverlapcError, match=r"have \[6, 5\] rows"):
        call(rich, [torch.ones(6, 4), torch.ones(4, 2), torch.ones(5, 2)])


def test_an_unknown_group_is_named(fake_group):
    with pytest.raises(OverlapcError, match="There is no process group 'gone'"):
        call(spec("gemm_all_reduce"), tensors(4), 1, [], [], "gone")


# Sizes and dtypes that are right, and rare

SIZES = [(0, 8, 6), (1, 8, 6), (5, 0, 6), (5, 8, 0), (3, 1, 1)]
DTYPES = (torch.float64, torch.int64, torch.int32, torch.complex64, torch.complex128)
KINDS = ("gemm_all_reduce", "gemm_reduce_scatter", "gemm_all_to_all", "all_gather_gemm",
         "all_to_all_gemm")  # fmt: skip


def rare(rank):
    wrong = {}
    with poisoned():
        for seed, (units, k, n) in enumerate(SIZES):
            for kind in KINDS:
                given = tensors(units if kind == "all_gather_gemm" else 2 * units, k, n, seed=rank)
                with ragged(seed):
                    error = max(errors_of(spec(kind, schedule="chunked"), given))
                if not error < 1e-6:
                    wrong[kind, units, k, n] = error
        for dtype in DTYPES:
            for kind in KINDS:
                error = max(errors_of(spec(kind), tensors(64, dtype=dtype, seed=rank)))
                if not error < (1e-6 if dtype == torch.complex64 else 1e-14):
                    wrong[kind, dtype] = error
    return wrong


def test_rare_sizes_and_dtypes_are_right(two_ranks):
    assert two_ranks.run(rare) == [{}, {}]


def average_of_integers(rank):
    given, messages = tensors(64, seed=rank), []
    for kind in ("gemm_all_reduce", "gemm_reduce_scatter"):
        averaging = replace(spec(kind, reduce="avg"), program=CASTING)
        try:
            call(averaging, given)
        except RuntimeError as error:
            messages.append(str(error))
        else:
            return "no error", kind
    # Nothing was left in flight.
    assert max(errors_of(spec("gemm_all_reduce"), given)) < 1e-6
    return messages


def test_an_average_that_the_backend_refuses_is_its_error_on_every_rank(two_ranks):
    for reduced, scattered in two_ranks.run(average_of_integers):
        assert "can't be cast" in reduced
        assert "must be either a floating point or complex dtype" in scattered


def some_ranks(rank):
    """Two groups of two: members of both are 1 and 2, and neither has rank 0 as its rank 0."""
    first, second = dist.new_group([3, 1]), dist.new_group([2, 0])
    group = first if rank in (1, 3) else second
    worst = 0.0
    for kind in KINDS:
        for outer in (1, 2):
            outer = 1 if kind == "gemm_all_reduce" else outer
            given = tensors(16 * outer, seed=rank)
            with ragged(outer):
                found = call(spec(kind, schedule="chunked"), given, outer, [], [], group.group_name)
            wanted = reference.chain(spec(kind), given, outer, [], [], group.group_name)
            for one, other in zip(found, wanted, strict=True):
                worst = max(worst, ((one - other).norm() / other.norm()).item())
    return worst


def test_groups_of_some_ranks(four_ranks):
    assert max(four_ranks.run(some_ranks)) < 1e-6


# Ranks that differ


@pytest.fixture
def fresh_ranks():
    ranks = Ranks(2)
    yield ranks
    ranks.close()


DIFFERENT = {
    "rows": ("gemm_all_reduce", lambda rank: (tensors(64 + rank),), "the sizes of a call differ"),
    "columns": ("gemm_reduce_scatter", lambda rank: (tensors(64, n=6 + rank),), "sizes of a call"),
    "shards": ("all_gather_gemm", lambda rank: (tensors(32 + rank),), "sizes of a call"),
    "blocks": ("all_to_all_gemm", lambda rank: (tensors(32), 1 + rank), "sizes of a call"),
    "dtypes": (
        "gemm_all_to_all",
        lambda rank: (tensors(64, dtype=(torch.float32, torch.float64)[rank]),),
        "sizes of a call",
    ),
    "one refuses": ("gemm_reduce_scatter", lambda rank: (tensors(64 + rank),), "refused|are not"),
    "splits": (
        "gemm_all_to_all",
        lambda rank: (tensors(10), 1, [4, 6 - rank], [4, 6]) if rank == 0
        else (tensors(9), 1, [5, 4], [5, 4]),
        "ranks expect other rows than are sent",
    ),
}  # fmt: skip


def differ_in(rank, name):
    kind, given, _ = DIFFERENT[name]
    verifying = spec(kind, verify=True, wait_seconds=20.0)
    fitting = tensors(64)
    errors_of(verifying, fitting)
    messages = []
    for _ in range(2):  # what was called once is compared again
        try:
            call(verifying, *given(rank))
        except OverlapcError as error:
            messages.append(str(error))
    assert max(errors_of(verifying, fitting)) < 1e-6
    return messages


@pytest.mark.parametrize("name", DIFFERENT)
def test_verify_is_a_clear_error_on_every_rank(two_ranks, name):
    started = time.monotonic()
    outcomes = two_ranks.run(differ_in, name)
    assert time.monotonic() - started < 15
    wanted = DIFFERENT[name][2].split("|")
    for messages in outcomes:
        assert len(messages) == 2
        assert all(any(text in message for text in wanted) for message in messages)


def even_and_uneven(rank):
    """Equal parts on one rank do not say that they are equal on another."""
    sizes = ([4, 6], [4, 6]) if rank else ([4, 4], [4, 4])
    operands = tensors(10 if rank else 8, seed=rank)
    found, again = (
        call(spec("gemm_all_to_all", site="mixed.0", options="mixed"), operands, 1, *sizes)[0]
        for _ in range(2)
    )
    assert torch.equal(found, again)
    splits = [4, 6] if rank else [4, 4]
    wanted = torch.empty(sum(splits), 6)
    dist.all_to_all_single(wanted, operands[0] @ operands[1], splits, splits)
    return (found - wanted).abs().max().item()


def test_a_rank_that_sends_equal_parts_meets_one_that_does_not(fresh_ranks):
    assert max(fresh_ranks.run(even_and_uneven)) < 1e-5


def others_send_less(rank):
    """Rank 0 sends the same twice, and is sent other rows."""
    chain = spec("gemm_all_to_all", site="less.0", options="less")
    calls = ((([4, 6], [4, 6]), ([4, 2], [4, 6])), (([6, 4], [6, 4]), ([6, 8], [2, 8])))[rank]
    return max(max(errors_of(chain, tensors(10, seed=rank), 1, *sizes)) for sizes in calls)


def test_what_is_received_may_change_alone(two_ranks):
    """The mutant that knows a call by what it sends prepares nothing for the second."""
    assert max(two_ranks.run(others_send_less)) < 1e-6


def even_by_its_graph(rank):
    sizes = ([4, 4], [4, 4]) if rank else ([], [])
    with pytest.raises(OverlapcError, match=r"the sizes of a call differ|send evenly"):
        call(spec("gemm_all_to_all", site="apart.0", options="apart"), tensors(8), 1, *sizes)
    return True


def test_graphs_that_are_even_and_uneven_are_told_apart(fresh_ranks):
    assert fresh_ranks.run(even_by_its_graph) == [True, True]


# Specifications


def test_a_specification_is_read_as_it_was_written():
    for case in CASES.values():
        made = chain("gemm_all_to_all", case.producer(), SLOW_LINK, axis=1, reduce="avg")
        assert ChainSpec.parse(made.text()) == made
        assert ChainSpec.parse(made.text()).text() == made.text()
    tiles = replace(spec("gemm_all_reduce"), takes_map=True, packed=Tile(64, 64, 32, 4, 3))
    assert ChainSpec.parse(tiles.text()) == tiles


@pytest.mark.parametrize(
    "text", ["", "{}", "target=x;options=y", "[1]", spec("gemm_all_reduce").text()[:-2]]
)
def test_what_is_no_specification_says_so(text):
    with pytest.raises(KernelError, match="is no specification of a chain"):
        ChainSpec.parse(text)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gemm_broadcast"},
        {"axis": 2},
        {"kind": "all_gather_gemm"},
        {"program": CONSUMER},
        {"packed": Tile(64, 64, 32, 4, 3)},
        {"packed": Tile(64, 64, 32, 4, 3), "takes_map": True, "kind": "gemm_all_to_all"},
    ],
)
def test_an_impossible_specification_cannot_be_made(change):
    with pytest.raises(ValueError, match=r"kind|axis|producer|tiles lie"):
        replace(spec("gemm_all_reduce"), **change)
