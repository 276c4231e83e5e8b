"""The stored table of this machine's linear layers, and what of it a cache of graphs depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from overlapc.errors import TargetError
from overlapc.planning.linear.regions import LinearEntry
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.reasons import no_op_where_rows_vary
from overlapc.runtime.attention.tables import attentions_won
from overlapc.runtime.machine import this_machine


def table_for(device: str) -> LinearTable | None:
    """Return what was measured on a type of device here; None where nothing was.

    Raises TargetError where the file cannot be read, or is of another version or device.
    """
    machine = this_machine(device)
    path = LinearTable.path(machine)
    return LinearTable.load(path, machine) if path.exists() else None


def fingerprint_of_tables() -> str:
    """Return a hash of what the tables here say that graphs are rewritten by; empty without any.

    Equal for machines whose measurements led to the same regions, whatever was measured. A table
    that cannot be used counts: sites say so.
    """
    return _hash([_problems(device) or _said(device, _entries(device)) for device in _devices()])


def _devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _hash(said: list[list[str]]) -> str:
    found = [lines for lines in said if lines]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:12] if found else ""


def _said(device: str, entries: Iterable[LinearEntry]) -> list[str]:
    lines = []
    for entry in entries:
        why = no_op_where_rows_vary(entry) if device == "cpu" else None
        said = f" {why.code}" if why else ""
        lines.append(f"{entry.problem} {entry.regions} {entry.launched}{said}")
    return sorted(lines)


def _problems(device: str) -> list[str]:
    """Why the table of a device cannot be used, if so."""
    try:
        table_for(device)
    except TargetError as error:
        return [str(error)]
    return []


def _entries(device: str) -> tuple[LinearEntry, ...]:
    try:
        table = table_for(device)
    except TargetError:
        return ()
    return table.entries if table else ()


def _not_left_to_the_library(device: str) -> list[str]:
    return _said(device, (entry for entry in _entries(device) if not entry.is_empty))


def choices(digest: str, linear: str, softmax: str = "off") -> str:
    """Return what the members of a group compare of their options, of which ``digest`` is the hash.

    Ranks that compute the same thing each for itself, such as where a router sends a token, would
    come to differ if other implementations rounded it: so tables are compared as well. One that
    cannot be used, or that nothing won in, leaves all to the library, as none does.
    """
    said = {"linear": _not_left_to_the_library if linear == "auto" else None,
            "attention": attentions_won if softmax == "auto" else None}  # fmt: skip
    for name, won in said.items():
        tables = _hash([won(device) for device in _devices()]) if won else ""
        digest += f"+{name}:{tables}" if tables else ""
    return digest
