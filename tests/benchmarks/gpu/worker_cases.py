"""Rows that fail in every way, for a worker's process."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.measuring.deadline import Deadline


def answers(deadline: Deadline) -> dict[str, Any]:
    """The row of a process."""
    return {"row": "answers", "process": os.getpid(), "left": deadline.left()}


def echoes(deadline: Deadline, **given: Any) -> dict[str, Any]:
    """What it was given."""
    return given


def raises(deadline: Deadline) -> dict[str, Any]:
    """No row."""
    raise RuntimeError("this row is wrong")


def crashes(deadline: Deadline) -> dict[str, Any]:
    """No process."""
    os._exit(9)


def hangs(deadline: Deadline) -> dict[str, Any]:
    """No end."""
    time.sleep(600)
    return {}
