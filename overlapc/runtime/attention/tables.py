"""The stored table of this machine's attentions."""

from __future__ import annotations

from overlapc.errors import TargetError
from overlapc.planning.attention.table import AttentionTable
from overlapc.runtime.machine import this_machine


def attention_table(device: str) -> AttentionTable | None:
    """Return what was measured on a type of device here; None where nothing was.

    Raises TargetError where the file cannot be read, or is of another version or device.
    """
    machine = this_machine(device)
    path = AttentionTable.path(machine)
    return AttentionTable.load(path, machine) if path.exists() else None


def attentions_won(device: str) -> list[str]:
    """Return a line for each shape that something was measured to win at: what ranks compare."""
    try:
        table = attention_table(device)
    except TargetError:
        return []
    return sorted(
        f"{entry.problem} {[trial.keys for trial in entry.trials if trial.is_won]}"
        for entry in (table.entries if table else ())
        if any(trial.is_won for trial in entry.trials)
    )
