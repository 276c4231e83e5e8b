"""Tables of what was measured on one machine: files that only this machine, as it is now, reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from overlapc.cache import cache_dir
from overlapc.errors import TargetError
from overlapc.planning.stored import fingerprint, read, write


@dataclass(frozen=True)
class Machine:
    """What measured times depend on beside the problem."""

    device: str
    """Type of the device, such as "cpu" or "cuda"."""
    name: str
    """Name of the device, with what its speed depends on: multiprocessors, or threads."""
    versions: str
    """Versions of torch, triton and overlapc."""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any of it."""
        return fingerprint(self)

    def __str__(self) -> str:
        return f"{self.name} with {self.versions}"

    def beside(self, other: Machine) -> str:
        """As text, without the device's name where `other` has just named it."""
        is_same = (self.device, self.name) == (other.device, other.name)
        return f"the same with {self.versions}" if is_same else str(self)


class Entry(Protocol):
    """What a table holds of one problem."""

    @property
    def problem(self) -> Any:
        """What was measured; no two entries of a table have the same."""
        ...


@dataclass(frozen=True)
class MeasuredTable:
    """Every problem that was measured on a machine, each once. Kinds of tables derive from it."""

    KEY: ClassVar[str]
    """What a file of the kind begins with."""
    FORMAT: ClassVar[int]
    """Version of the files; a newer one is refused."""
    ABOUT: ClassVar[str]
    """What was measured, in the words of an error."""
    AGAIN: ClassVar[str]
    """The remedy where a table is of no use."""
    FOLDER: ClassVar[str]

    machine: Machine
    entries: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if len(self._by_problem) < len(self.entries):
            raise ValueError("two entries are of one problem")

    @cached_property
    def _by_problem(self) -> dict[Any, Any]:
        return {entry.problem: entry for entry in self.entries}

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any content."""
        return fingerprint(self)

    def entry(self, problem: Any) -> Any:
        """What is known of exactly this problem; None where nothing is."""
        return self._by_problem.get(problem)

    def with_entries(self, entries: tuple[Any, ...]) -> Self:
        """The table with these in place of what it has of the same problems."""
        new = {entry.problem for entry in entries}
        kept = tuple(entry for entry in self.entries if entry.problem not in new)
        return replace(self, entries=kept + entries)

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads; its folder is made if needed, the write is atomic."""
        write(Path(path), self.KEY, self.FORMAT, self)

    @classmethod
    def load(cls, path: str | Path, machine: Machine) -> Self:
        """The table in a file, if it is of this very machine.

        Raises TargetError for what is not found, not ours, or of another machine or version.
        """
        table = read(Path(path), cls.KEY, cls.FORMAT, cls, f"table of {cls.ABOUT}", cls.AGAIN)
        if table.machine != machine:
            raise TargetError(
                f"The table of {cls.ABOUT} is of {table.machine}, "
                f"and this is {machine.beside(table.machine)}.",
                where=str(path),
                remedy=cls.AGAIN,
            )
        return table

    @classmethod
    def path(cls, machine: Machine) -> Path:
        """Where calibration keeps the table of a device; one of another version lies there too."""
        named = re.sub(r"[^a-z0-9]+", "-", machine.name.lower()).strip("-")
        return cache_dir() / cls.FOLDER / f"{machine.device}-{named}.json"
