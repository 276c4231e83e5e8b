"""Triton's interpreter for tests: it needs a process that imports Triton for nothing else."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TIMEOUT_SECONDS = 90
"""For one call: what hangs in the interpreter must not hang the tests. Chosen."""


@cache
def _import(file: str) -> ModuleType:
    path = Path(__file__).with_name(f"{file}.py")
    spec = importlib.util.spec_from_file_location(f"interpreted_{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def _interpret(cache_home: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["XDG_CACHE_HOME"] = cache_home
    os.environ["OMP_NUM_THREADS"] = "1"


def _call(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    file, function = name.split(".")
    try:
        return getattr(_import(file), function)(*arguments, **named)
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
        """Run ``file.function`` of this folder there, and return its result.

        What it raises is raised here, as an AssertionError that shows its traceback.
        Named, not given: test modules are no package that another process could import from.
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


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """Call it with a function and its arguments: it runs in a process of Triton's interpreter."""
    interpreter = Interpreter(tmp_path_factory.mktemp("interpreted"), processes=1)
    yield interpreter
    interpreter.close()


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory for this process and those that it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "overlapc"
