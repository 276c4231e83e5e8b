"""Triton's interpreter for tests: it needs a process that imports Triton for nothing else."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 90
"""For one call: what hangs in the interpreter must not hang the tests. Chosen."""


def _interpret(cache_home: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["XDG_CACHE_HOME"] = cache_home
    os.environ["OMP_NUM_THREADS"] = "1"


def _call(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    file, _, function = name.rpartition(".")
    module = f"tests.{file}" if "." in file else f"tests.codegen.{file}"
    try:
        return getattr(importlib.import_module(module), function)(*arguments, **named)
    except Exception:
        # As text: not every exception survives pickling, and none brings its traceback along.
        raise AssertionError(traceback.format_exc()) from None


class Interpreter:
    """Processes in which ``@triton.jit`` functions run on the CPU."""

    def __init__(self, cache_home: Path, processes: int) -> None:
        self.pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_interpret,
            initargs=(str(cache_home),),
        )

    def __call__(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Run a function there, and return its result.

        ``file.function`` is of ``tests/codegen``, ``folder.file.function`` of ``tests``.
        What it raises is raised here, as an AssertionError that shows its traceback.
        Named, not given: to import it here would import Triton as it is.
        """
        return self.start(name, *arguments, **named).result(TIMEOUT_SECONDS)

    def start(self, name: str, *arguments: Any, **named: Any) -> Future[Any]:
        """Like a call, but returns the future of the result at once."""
        return self.pool.submit(_call, name, arguments, named)

    def close(self) -> None:
        """End the processes, also those that hang."""
        for process in list(self.pool._processes.values()):
            process.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)
