"""The measured linear layers of one machine: a file that only this machine, as it is now, reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from overlapc.cache import cache_dir
from overlapc.errors import TargetError
from overlapc.planning.linear import LinearEntry, LinearProblem
from overlapc.planning.records import check_format, from_value, to_value

FORMAT = 2
"""Version of the files; a newer one is refused."""
KEY = "overlapc_linear"
AGAIN = "run overlapc calibrate --linear on this machine, or compile with linear='off'"


@dataclass(frozen=True)
class Machine:
    """What measured times depend on beside the problem."""

    device: str
    """Type of the device, such as "cpu" or "cuda"."""
    name: str
    """Of the device, with what its speed depends on: multiprocessors, or threads."""
    versions: str
    """Of torch, triton and overlapc."""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any of it."""
        return _hash(to_value(self))

    def __str__(self) -> str:
        return f"{self.name} with {self.versions}"


@dataclass(frozen=True)
class LinearTable:
    """Every problem that was measured on a machine, each once."""

    machine: Machine
    entries: tuple[LinearEntry, ...] = ()

    def __post_init__(self) -> None:
        if len(self._by_problem) < len(self.entries):
            raise ValueError("two entries are of one problem")

    @cached_property
    def _by_problem(self) -> dict[LinearProblem, LinearEntry]:
        return {entry.problem: entry for entry in self.entries}

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any content."""
        return _hash(to_value(self))

    def entry(self, problem: LinearProblem) -> LinearEntry | None:
        """What is known of exactly this problem."""
        return self._by_problem.get(problem)

    def with_entries(self, entries: tuple[LinearEntry, ...]) -> LinearTable:
        """The table with these in place of what it has of the same problems."""
        new = {entry.problem for entry in entries}
        kept = tuple(entry for entry in self.entries if entry.problem not in new)
        return replace(self, entries=kept + entries)

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads; its folder is made if needed, the write is atomic."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps({KEY: FORMAT, **to_value(self)}, indent=1) + "\n")
        unfinished.replace(path)

    @staticmethod
    def load(path: str | Path, machine: Machine) -> LinearTable:
        """The table in a file, if it is of this very machine.

        Raises TargetError for what is not found, not ours, or of another machine or version.
        """
        table = _read(Path(path))
        if table.machine != machine:
            raise TargetError(
                f"The table of linear layers is of {table.machine}, and this is {machine}.",
                where=str(path),
                remedy=AGAIN,
            )
        return table


def table_path(machine: Machine) -> Path:
    """Where calibration keeps the table of a device; one of another version lies there as well."""
    named = re.sub(r"[^a-z0-9]+", "-", machine.name.lower()).strip("-")
    return cache_dir() / "linear" / f"{machine.device}-{named}.json"


def _read(path: Path) -> LinearTable:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or KEY not in content:
            raise ValueError("it is no table of linear layers")
        check_format(content.pop(KEY), FORMAT)
        return from_value(LinearTable, content)
    except (OSError, ValueError) as error:
        raise TargetError(
            f"The table of linear layers cannot be read: {error}.", where=str(path), remedy=AGAIN
        ) from error


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
