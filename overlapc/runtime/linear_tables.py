"""The stored table of this machine's linear layers, and what of it a cache of graphs depends on."""

from __future__ import annotations

import hashlib

import torch

from overlapc.errors import TargetError
from overlapc.planning.linear_table import LinearTable, table_path
from overlapc.runtime.machine import this_machine


def table_for(device: str) -> LinearTable | None:
    """Return what was measured on a type of device here; None where nothing was.

    Raises TargetError where the file cannot be read, or is of another version or device.
    """
    machine = this_machine(device)
    path = table_path(machine)
    return LinearTable.load(path, machine) if path.exists() else None


def fingerprint_of_tables() -> str:
    """Return a hash of what the tables here say that graphs are rewritten by; empty without any.

    Equal for machines whose measurements led to the same regions, whatever was measured.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = [said for device in devices if (said := _decisions(device))]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:12] if found else ""


def _decisions(device: str) -> list[str]:
    try:
        table = table_for(device)
    except TargetError as error:
        return [str(error)]
    return sorted(f"{entry.problem} {entry.regions}" for entry in table.entries) if table else []


def choices(digest: str, linear: str) -> str:
    """Return what the members of a group compare of their options, of which ``digest`` is the hash.

    Ranks that compute the same thing each for itself, such as where a router sends a token, would
    come to differ if other implementations rounded it: so tables are compared as well.
    """
    tables = fingerprint_of_tables() if linear == "auto" else ""
    return f"{digest}+linear:{tables}" if tables else digest
