"""Rows of a GPU benchmark, each in a process that may fail, crash or hang without the others."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from benchmarks.measuring.deadline import Deadline

HUNG = "It did not end"
"""With which the error of a row begins that took longer than its limit."""
DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG``."""
SETTLE_SECONDS = 5.0
"""For which a process that was ended may take to end."""


@dataclass(frozen=True)
class Row:
    """One row of a table that is still to be measured."""

    table: str
    name: str
    """Which one of the table."""
    function: str
    """Its dotted name; it takes a deadline and the arguments."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 1.0
    """In which it is to be done, but for what is compiled."""
    limit: float = 60.0
    """After so many it is taken to hang."""


class Runner(Protocol):
    """What runs rows."""

    def run(self, row: Row, limit: float) -> dict[str, Any]:
        """The row; with a key "error" where it failed, or took longer than ``limit`` seconds."""
        ...


def call(row: Row) -> dict[str, Any]:
    """Run a row in this process."""
    module, _, function = row.function.rpartition(".")
    found = getattr(import_module(module), function)
    return dict(found(Deadline.after(row.seconds), **row.arguments))


def failed(row: Row, why: str, details: str = "") -> dict[str, Any]:
    """What stands in a table in place of a row."""
    return {"row": row.name, "error": why, **({"details": details} if details else {})}


class WrongResult(Exception):
    """A path computes something else than it should, or the library had to step in."""


class Skipped(Exception):
    """What a row asks for cannot be measured on this machine, for this reason."""


def attempt(row: Row) -> dict[str, Any]:
    """Run a row in this process, whatever it raises."""
    try:
        return call(row)
    except Skipped as why:
        return {"row": row.name, "skipped": str(why)}
    except Exception as error:
        return failed(row, f"{type(error).__name__}: {error}"[:500], traceback.format_exc())


class Worker:
    """A process for rows, and another one after each that did the device or the process harm."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Any = None

    def run(self, row: Row, limit: float) -> dict[str, Any]:
        """See ``Runner``."""
        process = self._process or self._start()
        try:
            self._connection.send(row)
            if not self._connection.poll(limit):
                self.close()
                return failed(row, f"{HUNG} within {limit:.0f} s, and was ended.")
            found, is_well = self._connection.recv()
        except (EOFError, OSError):
            process.join(SETTLE_SECONDS)
            self.close()
            return failed(row, f"Its process ended with exit code {process.exitcode}.")
        if not is_well:
            self.close()
        return found

    def close(self) -> None:
        """End the process, also one that hangs, and what it has started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join(SETTLE_SECONDS)
            self._connection.close()
        self._process = None

    def _start(self) -> Any:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self._process


def serve(connection: Any) -> None:
    """Run rows until nobody asks for any; each answer says whether this process is well."""
    os.setpgrp()  # so that it is ended with all that it starts
    end_with_parent()
    while True:
        try:
            row = connection.recv()
        except EOFError:
            return
        found = attempt(row)
        connection.send((found, "error" not in found or device_is_well()))


def end_with_parent() -> None:
    """Let this process be killed where the one that has started it is: a row that hangs would hold
    the device. On Linux alone; elsewhere it ends once its row has. What the row has started gets no
    such signal: that ends by itself, or goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def device_is_well() -> bool:
    """Whether the device still computes: after some errors nothing does in the same process."""
    if "torch" not in sys.modules:
        return True
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        return bool((torch.ones(2, device="cuda") + 1).sum().item() == 4)
    except RuntimeError:
        return False
