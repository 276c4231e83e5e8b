"""Which units a group takes, against lists of numbers."""

from __future__ import annotations

import random

import pytest
import torch

from overlapc.runtime.cutting import columns, layout
from overlapc.runtime.cutting.layout import Dealing, consumer_parts, producer_parts
from overlapc.runtime.cutting.units import Units, band, dealt, portions


def numbers(units: Units) -> list[int]:
    """The units by number, from the slices."""
    return [start + step for start, length in units.slices for step in range(length)]


def grids():
    dice = random.Random(1)
    for _ in range(300):
        grid = dice.randint(1, 4), dice.randint(1, 4), dice.randint(1, 5)
        each = grid[0] * grid[2]
        start = dice.randint(0, each)
        yield grid, start, dice.randint(start, each)


def test_units_are_dealt_by_rank_then_in_the_order_of_the_rank():
    for (outer, ranks, inner), start, end in grids():
        owner = torch.arange(outer * ranks * inner).view(outer, ranks, inner)
        wanted = [u for r in range(ranks) for u in owner[:, r].flatten().tolist()[start:end]]
        assert numbers(dealt((outer, ranks, inner), start, end)) == wanted


def some_units():
    yield from (dealt(*one) for one in grids())
    yield from (dealt(grid, start, end, [(0, 1)]) for grid, start, end in grids())
    yield band(2, 5, 9)
    yield portions([3, 0, 7], (1, 2, 3), [0, 2])


def test_take_and_put_are_what_slices_say():
    for units in some_units():
        total = units.grid[0] * units.grid[1] * units.grid[2]
        tensor, chosen = torch.randn(total, 3), numbers(units)
        for given in (tensor, tensor.t().contiguous().t(), tensor[:, 0]):
            assert torch.equal(units.take(given), given[chosen])
        place, values = torch.zeros(total, 3), torch.randn(units.count, 3)
        units.put(place, values)
        wanted = torch.zeros(total, 3)
        wanted[chosen] = values
        assert torch.equal(place, wanted)


def test_what_is_taken_of_contiguous_memory_is_contiguous():
    for units in some_units():
        total = units.grid[0] * units.grid[1] * units.grid[2]
        assert units.take(torch.randn(total, 1)).is_contiguous()


def test_offsets_count_the_units_before_each_end():
    dice = random.Random(2)
    for units in some_units():
        total = units.grid[0] * units.grid[1] * units.grid[2]
        ends = sorted(dice.randint(0, total) for _ in range(3))
        chosen = numbers(units)
        found = units.offsets(torch.tensor(ends, dtype=torch.int32))
        assert found.tolist() == [sum(unit < end for unit in chosen) for end in ends]
        assert found.dtype == torch.int32


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_portions_of_sender_and_receiver_are_the_same(ranks):
    dice = random.Random(ranks)
    for _ in range(50):
        rows = [[dice.randint(0, 9) for _ in range(ranks)] for _ in range(ranks)]
        groups = dice.randint(1, 5)
        deals = [
            Dealing(
                "all_to_all", 0, sum(rows[me]), ranks, me,
                receives=tuple(row[me] for row in rows), sends=tuple(rows[me]),
            )
            for me in range(ranks)
        ]  # fmt: skip
        parts = [producer_parts(deal, (1,) * groups) for deal in deals]
        for group in zip(*parts, strict=True):
            for sender in range(ranks):
                for receiver in range(ranks):
                    assert group[sender].sends[receiver] == group[receiver].receives[sender]
        for deal, mine in zip(deals, parts, strict=True):
            assert covers([part.computed for part in mine], deal.units)
            assert covers([part.landed for part in mine], sum(deal.receives))


def covers(parts: list[Units], units: int) -> bool:
    """Whether every unit is in exactly one of the parts."""
    return sorted(number for part in parts for number in numbers(part)) == list(range(units))


@pytest.mark.parametrize("collective", ["all_reduce", "reduce_scatter", "all_to_all", "all_gather"])
def test_groups_cover_every_unit_once(collective):
    dice = random.Random(3)
    for _ in range(100):
        ranks, outer, axis = dice.randint(1, 4), dice.randint(1, 3), dice.randint(0, 1)
        outer = 1 if axis or collective == "all_reduce" else outer
        units = outer * ranks * dice.randint(1, 6)
        deal = Dealing(collective, axis, units, ranks, dice.randrange(ranks), outer)
        cuts = sorted(dice.sample(range(1, deal.each), min(deal.each - 1, 2)))
        counts = [b - a for a, b in zip([0, *cuts], [*cuts, deal.each], strict=True)]
        if collective != "all_gather":
            parts = producer_parts(deal, counts)
            assert covers([part.computed for part in parts], units)
            assert covers([part.landed for part in parts], deal.result_units)
        if collective in ("all_gather", "all_to_all"):
            local, parts = consumer_parts(deal, counts)
            computed = [part.computed for part in parts]
            assert (local is None) == (axis == 1)
            assert covers([*computed, *([local.computed] if local else [])], units)
            assert all(part.computed.count == part.landed.count for part in parts)
            (whole,) = consumer_parts(deal, ())[1]
            assert covers([whole.landed], units)


def test_a_lost_unit_is_noticed():
    deal = Dealing("reduce_scatter", 0, 12, 2, 0)
    parts = producer_parts(deal, (2, 4))
    assert covers([part.computed for part in parts], 12)
    assert not covers([part.computed for part in parts[1:]], 12)
    assert layout.everything(12).is_all


def test_packed_columns_unpack():
    for ranks in (1, 2, 3):
        tensor = torch.randn(5, 4 * ranks, 3)
        packed = columns.pack(tensor, ranks)
        assert packed.is_contiguous()
        assert torch.equal(packed[5 * (ranks - 1) :], tensor[:, 4 * (ranks - 1) :])
        assert torch.equal(columns.unpack(packed, ranks), tensor)


@pytest.mark.parametrize("collective", ["all_gather", "all_to_all"])
def test_no_group_has_a_box_of_nothing(collective):
    """The mutant that keeps the empty span beside the first rank copies nothing, in time."""
    for me in range(3):
        deal = Dealing(collective, 0, 24, 3, me)
        local, parts = consumer_parts(deal, (3, 5))
        assert local is not None
        units = [local.computed, local.own]
        units += [one for part in parts for one in (part.computed, part.sent, part.landed)]
        assert all(box.count for one in units for box in one.boxes)
