"""What follows from what ranks say of a call, without ranks: only the texts matter."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overlapc.planning.problem import COLUMNS, ROWS
from overlapc.runtime.cutting.layout import Dealing
from overlapc.runtime.preparing import Chain, assemble
from overlapc.runtime.ranks import agreement
from overlapc.runtime.ranks.agreement import Cut
from tests.runtime.chains import MM, chain
from tests.targets import SLOW_LINK

UNEVEN = "an all-to-all of uneven parts in "


class Group:
    """Stands for a group of which nothing but its identity is looked at."""


@pytest.fixture
def saying(monkeypatch):
    """Let the ranks say these texts; nobody may ask where there are none."""

    def say(*texts):
        def exchange(*_):
            assert texts, "a rank asks what others do not"
            return list(texts)

        monkeypatch.setattr(agreement.groups, "exchange", exchange)

    return say


def agreed(saying, *wishes):
    saying(*(UNEVEN + wish for wish in wishes))
    return agreement.common_count(Group(), "it", "an all-to-all", Cut("serial", (1,)), 1.0)


def test_the_wish_with_the_middle_number_of_groups_is_kept(saying):
    """Of two the fewer groups: the mutant that takes the later of two cuts more."""
    one, two, four = "serial rows 9", "chunked rows 4,5", "chunked rows 2,2,2,3"
    assert agreed(saying, four, one).rows == (9,)
    assert agreed(saying, four, two, one) == Cut("chunked", (4, 5), ROWS)
    assert agreed(saying, four, four, one).rows == (2, 2, 2, 3)


def test_columns_are_cut_where_all_wish_it(saying):
    rows, columns = "chunked rows 2,2,5", "chunked columns 8,8"
    assert agreed(saying, columns, columns) == Cut("chunked", (8, 8), COLUMNS)
    assert agreed(saying, columns, rows) == Cut("chunked", (2, 2, 5), ROWS)


def test_who_has_no_rows_now_has_one_group_later(saying):
    """The mutant that keeps the nothing divides by it."""
    assert agreed(saying, "serial rows 0", "serial rows 0").rows == (1,)


def test_all_plan_for_operands_that_lie_as_those_of_one_rank(saying):
    """Which of two that compute as much does not matter. Mutant: each takes dense ones."""
    group, spec = Group(), chain("gemm_all_reduce", MM, SLOW_LINK)
    deal = Dealing("all_reduce", 0, 64, 2, 0)
    strided = [torch.ones(64, 16)[:, ::2], torch.ones(8, 6)]
    said = [
        f"an op of sizes\nby {agreement._described(spec, operands, deal)}"
        for operands in (strided, [torch.ones(64, 9)[:, :8], torch.ones(8, 6)])
    ]
    for order in (said, said[::-1]):
        saying(*order)
        work = agreement.common_work(group, spec, f"{order}", "sizes", strided, deal)
        problem = work.problem(spec, deal, 64)
        assert problem.layouts == ("strided", "row")


def test_what_is_beyond_memory_runs_serial_and_asks_nobody(saying, monkeypatch):
    monkeypatch.setattr(agreement, "MOST_REMEMBERED", 1)
    group, spec = Group(), chain("gemm_all_reduce", MM, SLOW_LINK)
    operands = [torch.ones(64, 8), torch.ones(8, 6)]
    deal = Dealing("all_reduce", 0, 64, 2, 0)
    said = f"an op of sizes\nby {agreement._described(spec, operands, deal)}"
    saying(said, said)
    first = agreement.common_work(group, spec, "first", "sizes", operands, deal)
    saying()
    assert agreement.common_work(group, spec, "second", "sizes", operands, deal) is None
    assert first is not None
    assert agreement.common_work(group, spec, "first", "sizes", operands, deal) == first
    assert agreement.known_count(group, "uneven") is None
    saying(UNEVEN + "chunked rows 2,2")
    kept = agreement.common_count(group, "uneven", "an all-to-all", Cut("serial", (1,)), 1.0)
    saying()
    assert agreement.known_count(group, "uneven") == kept
    assert agreement.known_count(group, "another") == Cut("serial", (1,))


def test_all_plan_for_who_computes_most_and_what_all_can_do():
    spec, deal = chain("gemm_all_reduce", MM, SLOW_LINK), Dealing("all_reduce", 0, 64, 2, 0)
    texts = []
    for k, takes_map, ways in ((8, True, ["rows", "columns"]), (32, False, ["rows"])):
        said = json.loads(agreement._described(spec, [torch.ones(64, k), torch.ones(k, 6)], deal))
        texts.append(json.dumps({**said, "takes_map": takes_map, "ways": ways}))
    for given in (texts, texts[::-1]):
        work = agreement._heaviest(given)
        assert work is not None
        assert work.shapes == ((64, 32), (32, 6))
        assert not work.takes_map
        assert work.ways == {"rows"}
    assert agreement._heaviest([texts[0], ""]) is None
    alike = agreement._heaviest(texts[:1] * 2)
    assert alike is not None
    assert alike.takes_map


@pytest.mark.parametrize(("rows", "is_signaled"), [((64,), False), ((32, 32), True)])
def test_one_group_is_not_signaled(rows, is_signaled):
    """The mutant that signals one group takes another communicator for nothing."""
    spec, deal = chain("gemm_all_reduce", MM, SLOW_LINK), Dealing("all_reduce", 0, 64, 2, 0)
    plan: Any = SimpleNamespace(problem=SimpleNamespace(m=64), tile=None)
    operands = [torch.ones(64, 8), torch.ones(8, 6)]
    ready = assemble(Chain.of(spec), operands, deal, Cut("signaled", rows), plan)
    assert (ready.signaled is not None) == is_signaled
    assert ready.schedule == ("chunked" if is_signaled else "serial")
