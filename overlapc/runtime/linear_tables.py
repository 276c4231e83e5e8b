"""The stored table of this machine's linear layers, and what of it a cache of graphs depends on."""

from __future__ import annotations

import hashlib

import torch

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
    """Return a hash of the tables that graphs may be rewritten by here; empty without any."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    paths = [table_path(this_machine(device)) for device in devices]
    found = [path.read_bytes() for path in paths if path.exists()]
    return hashlib.sha256(b"\0".join(found)).hexdigest() if found else ""
