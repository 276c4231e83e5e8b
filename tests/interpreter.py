"""Triton's interpreter for tests: it needs a process that imports Triton for nothing else.

Or an emulated device in its place, which runs what Triton compiles (``tests/emulated``).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_SECONDS = 90
"""For one call: what hangs in the interpreter must not hang the tests. Chosen."""


EMULATED_SECONDS = 300
"""The same of an emulated device, for which kernels are compiled."""
LOOK_INTO_IT = {
    *("bytes_read", "mask_read", "keys_read", "numbers_read", "tile_order", "written_first"),
    *("main", "main_of"),
}
"""Functions that count what the interpreter does, and modules that are run as a whole."""
DEVICE = "OVERLAPC_EMULATED"
"""Environment variable of such a process: the device that is emulated."""


def _prepare(cache_home: str, device: str) -> None:
    os.environ |= {DEVICE: device} if device else {"TRITON_INTERPRET": "1"}
    os.environ["XDG_CACHE_HOME"] = cache_home
    os.environ["OMP_NUM_THREADS"] = "1"


def _call(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    file, _, function = name.rpartition(".")
    module = f"tests.{file}" if "." in file else f"tests.codegen.{file}"
    try:
        with _on_device():
            return getattr(importlib.import_module(module), function)(*arguments, **named)
    except Exception:
        # As text: not every exception survives pickling, and none brings its traceback along.
        raise AssertionError(traceback.format_exc()) from None


def _on_device() -> AbstractContextManager[Any]:
    if not (device := os.environ.get(DEVICE)):
        return nullcontext()
    return importlib.import_module("tests.emulated.launching").emulated(device)


class Interpreter:
    """Processes in which ``@triton.jit`` functions run on the CPU: interpreted, or compiled for a
    device such as ``sm_90`` that is emulated."""

    def __init__(self, cache_home: Path, processes: int, device: str = "") -> None:
        self.device = device
        self.pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=(str(cache_home), device),
        )

    def __call__(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Run a function there, and return its result.

        ``file.function`` is of ``tests/codegen``, ``folder.file.function`` of ``tests``.
        What it raises is raised here, as an AssertionError that shows its traceback.
        Named, not given: to import it here would import Triton as it is.
        """
        patience = EMULATED_SECONDS if self.device else TIMEOUT_SECONDS
        return self.start(name, *arguments, **named).result(patience)

    def start(self, name: str, *arguments: Any, **named: Any) -> Future[Any]:
        """Like a call, but returns the future of the result at once."""
        if self.device and LOOK_INTO_IT & {name.rpartition(".")[2], *arguments[:1]}:
            pytest.skip("looks into the interpreter, which an emulated device has not")
        return self.pool.submit(_call, name, arguments, named)

    def close(self) -> None:
        """End the processes, also those that hang."""
        for process in list(self.pool._processes.values()):
            process.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)
