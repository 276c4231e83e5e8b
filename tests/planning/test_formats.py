"""Versions of stored targets and plans: old texts are read, newer ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, make_dataclass
from pathlib import Path
from random import Random
from typing import Any, get_args, get_type_hints

import pytest

from overlapc.errors import OverlapcError, PlanError, TargetError
from overlapc.planning import schedule, target
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan
from overlapc.planning.target import Target
from tests.conftest import Golden
from tests.planning.machines import random_problem, random_target

CURVE = {"points": [[4096, 1e-4], [1 << 20, 1e-2]]}
FIRST_TARGET = {
    "overlapc_target": 1,
    "name": "of-version-one",
    "device": "cpu",
    "backend": "gloo",
    "is_measured": True,
    "gemm": [{"dtype": "float32", "flops_per_second": 1e11, "launch_seconds": 1e-5}],
    "links": [
        {
            "collective": "all_reduce",
            "world_size": 2,
            "alone": CURVE,
            "queued": CURVE,
            "issue_seconds": 3e-5,
        }
    ],
    "compute_slowdown": 1.1,
    "link_slowdown": 1.2,
    "signal_seconds": 0.0,
    "communication_sms": 0,
    "source": [{"about": "all", "origin": "made up"}],
}
"""As the first version wrote it."""

FIRST_PLAN = {
    "overlapc_plan": 1,
    "problem": {
        "m": 96,
        "n": 8,
        "k": 8,
        "dtype": "float32",
        "collective": "all_reduce",
        "world_size": 2,
        "epilogue_bytes": 0,
    },
    "target": "of-version-one",
    "fingerprint": "0123456789ab",
    "schedule": "chunked",
    "rows": [64, 32],
    "predicted_seconds": 0.5,
    "serial_seconds": 1.0,
    "bound_seconds": 0.25,
    "code": "given",
    "reason": "The rows were given.",
    "timeline": [{"lane": "compute", "group": 0, "start": 0.0, "end": 0.5}],
}
"""As the first version wrote it."""


def read_target(content: dict[str, Any], folder: Path) -> Target:
    path = folder / "machine.json"
    path.write_text(json.dumps(content))
    return Target.load(path)


def read_plan(content: dict[str, Any], folder: Path) -> Plan:
    return Plan.from_json(json.dumps(content))


def written_target(folder: Path) -> dict[str, Any]:
    random_target(Random(7)).save(folder / "written.json")
    return json.loads((folder / "written.json").read_text())


def written_plan(folder: Path) -> dict[str, Any]:
    random = Random(7)
    return json.loads(plan(random_problem(random, 300), random_target(random)).to_json())


Write = Callable[[Path], dict[str, Any]]
Read = Callable[[dict[str, Any], Path], Any]
TEXTS = {
    "target": ("overlapc_target", target.FORMAT, written_target, read_target, TargetError),
    "plan": ("overlapc_plan", schedule.FORMAT, written_plan, read_plan, PlanError),
}
EACH = pytest.mark.parametrize(
    ("key", "newest", "write", "read", "error"), TEXTS.values(), ids=TEXTS
)


def test_what_the_first_version_wrote_is_read(tmp_path: Path) -> None:
    old = read_target(FIRST_TARGET, tmp_path)
    assert (old.name, old.tuned, old.links[0].issue) == ("of-version-one", (), None)
    made = plan(read_plan(FIRST_PLAN, tmp_path).problem, old)
    assert made.predicted_seconds > 0
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("flag", [True, False])
def test_a_field_that_went_is_read_over(flag: bool, tmp_path: Path) -> None:
    """Formats 1 to 6 had it. Mutant: a reader that takes it for unknown."""
    before = {**FIRST_PLAN["problem"], "local_first": flag}
    old = read_plan({**FIRST_PLAN, "problem": before}, tmp_path)
    assert old == read_plan(FIRST_PLAN, tmp_path)
    assert "local_first" not in old.to_json()
    with pytest.raises(PlanError, match=r"unknown field problem\.first"):
        read_plan({**FIRST_PLAN, "problem": {**before, "first": flag}}, tmp_path)


@EACH
def test_a_newer_text_is_refused_by_its_version(
    key: str, newest: int, write: Write, read: Read, error: type[OverlapcError], tmp_path: Path
) -> None:
    """Whatever else is new in it."""
    content = {**write(tmp_path), key: newest + 1, "color": "red"}
    says = rf"newer overlapc wrote it: .*format {newest + 1}, and .* reads formats 1 to {newest}"
    with pytest.raises(error, match=says) as caught:
        read(content, tmp_path)
    assert "color" not in str(caught.value)


@EACH
@pytest.mark.parametrize("version", [0, -1, "2", True, 1.0, None], ids=str)
def test_a_version_that_is_none_is_refused(
    version: Any,
    key: str,
    newest: int,
    write: Write,
    read: Read,
    error: type[OverlapcError],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=r"it has format .*, and this overlapc reads") as caught:
        read({**write(tmp_path), key: version}, tmp_path)
    assert "newer" not in str(caught.value)


@EACH
def test_what_is_written_says_the_newest_version(
    key: str, newest: int, write: Write, read: Read, error: type[OverlapcError], tmp_path: Path
) -> None:
    content = write(tmp_path)
    assert content[key] == newest
    read(content, tmp_path)


def fields_of(record: type, path: str = "") -> list[str]:
    """Every field that a text of the record may hold, those of records in it too."""
    hints = get_type_hints(record)
    found = []
    for field in fields(record):
        where = f"{path}.{field.name}" if path else field.name
        found.append(f"{where}: {field.type}")
        for inner in records_in(hints[field.name]):
            found += fields_of(inner, where)
    return found


def records_in(kind: Any) -> list[type]:
    if isinstance(kind, type) and is_dataclass(kind):
        return [kind]
    return [record for inner in get_args(kind) for record in records_in(inner)]


@pytest.mark.parametrize(
    ("record", "version"),
    [(Target, target.FORMAT), (Plan, schedule.FORMAT)],
    ids=["target", "plan"],
)
def test_the_fields_of_a_version_stay(record: type, version: int, golden: Golden) -> None:
    """Where this fails, add one to FORMAT: the fields of the new version are a new golden text."""
    golden("\n".join(fields_of(record)), name=f"version-{version}")


def test_a_new_field_would_be_seen() -> None:
    grown = make_dataclass("Grown", [("color", str, "red")], bases=(Plan,), frozen=True)
    assert set(fields_of(grown)) - set(fields_of(Plan)) == {"color: <class 'str'>"}
