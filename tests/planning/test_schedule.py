from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest

from overlapc.errors import PlanError
from overlapc.planning.schedule import Plan, format_seconds
from overlapc.planning.search import plan, plan_rows
from tests.planning.machines import random_problem, random_target


def some_plan() -> Plan:
    random = Random(12)
    problem = replace(random_problem(random, 300), m=300)
    return plan_rows(problem, random_target(random), (128, 64, 64, 44))


def test_a_plan_survives_its_text() -> None:
    random = Random(0)
    for _ in range(100):
        made = plan(random_problem(random, 600), random_target(random))
        read = Plan.from_json(made.to_json())
        assert read == made
        assert hash(read) == hash(made)
        assert read.to_json() == made.to_json()


def by_columns() -> Plan:
    problem = replace(some_plan().problem, n=300, cuts_columns=True)
    return plan_rows(problem, random_target(Random(12)), (128, 64, 64, 44), by="columns")


def test_a_plan_by_columns_is_another_plan() -> None:
    made = by_columns()
    read = Plan.from_json(made.to_json())
    assert (read, hash(read), read.by) == (made, hash(made), "columns")
    assert made.schedule == "chunked"
    assert "columns 128 + 2x64 + 44" in str(made)
    assert made.starts == (0, 128, 192, 256)
    assert made != plan_rows(made.problem, random_target(Random(12)), (300,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"by": "rows", "rows": [300, 300]}, "do not cut"),
        ({"rows": [128, 128, 45]}, "columns .* do not cut"),
        ({"by": "diagonals"}, "diagonals .* do not cut"),
        ({"schedule": "signaled"}, "a signaled plan has no groups of columns"),
        ({"schedule": "serial", "rows": [300]}, "a serial plan has no groups of columns"),
    ],
)
def test_a_text_that_is_no_plan_by_columns_is_refused(change: dict, says: str) -> None:
    content = {**json.loads(by_columns().to_json()), **change}
    with pytest.raises(PlanError, match=says):
        Plan.from_json(json.dumps(content))
    uncut = {**content["problem"], "cuts_columns": False}
    with pytest.raises(PlanError, match="do not cut"):
        Plan.from_json(json.dumps({**json.loads(by_columns().to_json()), "problem": uncut}))


def test_a_plan_prints_what_it_does() -> None:
    text = str(some_plan())
    assert "rows 128 + 2x64 + 44" in text
    assert "[given]" in text
    assert "random" in text


def test_groups_start_where_the_one_before_ends() -> None:
    assert some_plan().starts == (0, 128, 192, 256)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [128, 64, 64, 45]}, "do not cut"),
        ({"rows": [300, 0]}, "do not cut"),
        ({"schedule": "magic"}, "magic"),
        ({"schedule": "serial"}, "one group"),
        ({"reason": ""}, "says why"),
        ({"rows": "all"}, "rows is 'all'"),
        ({"overlapc_plan": 9}, "format 9"),
        ({"color": "red"}, "unknown field color"),
        ({"problem": {}}, "problem.m is missing"),
    ],
)
def test_a_text_that_is_no_plan_is_refused(change: dict, says: str) -> None:
    content = {**json.loads(some_plan().to_json()), **change}
    with pytest.raises(PlanError, match=says):
        Plan.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"overlapc_plan": 1}'])
def test_a_foreign_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.from_json(text)


def test_seconds_read_well() -> None:
    """What is rounded up to the next unit is said in it."""
    given = (2.0, 0.9996, 0.9994, 0.0123, 9.996e-4, 9.994e-4, 4.5e-5, 0.0)
    assert [format_seconds(x) for x in given] == [
        "2 s",
        "1 s",
        "999 ms",
        "12.3 ms",
        "1 ms",
        "999 us",
        "45 us",
        "0 us",
    ]
