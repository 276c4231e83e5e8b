"""Real gloo processes that run test functions: one pair a session, fresh ones where they break."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SERVER = get_context("forkserver")
"""Forks from a process that imported torch and ran nothing: seconds are saved a pair.

A child forked from the tests would inherit torch's threads in an unusable state.
"""
SERVER.set_forkserver_preload(["tests.preloaded"])

FOLDERS = frozenset({"TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"})
"""Variables that are read anew at every use."""


class RankError(AssertionError):
    """A test function raised on a rank; the text holds its traceback."""


class Ranks:
    """``size`` processes in one gloo group; ``run`` calls a function of a module on all of them.

    Where one has ended or does not answer, all are ended, and the next call has new ones: the test
    that broke them fails, and none after it.
    """

    def __init__(self, size: int, *, environment: dict[str, str] | None = None) -> None:
        self.size, self.environment = size, environment or {}
        # Not of a GPU: one that was looked for before a fork fails after it.
        self.is_forked = self.environment.keys() == {"TRITON_INTERPRET"}
        self.pipes: list[Connection] = []
        self.processes = []
        self._start()

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="overlapc-ranks-")
        rendezvous = Path(self.folder.name) / "store"
        # Of today: the server's own are of the day when it was started.
        variables = {**os.environ, "XDG_CACHE_HOME": self.folder.name, **self.environment}
        self.pipes, theirs = map(list, zip(*(Pipe() for _ in range(self.size)), strict=True))
        # What is imported by the server has read the rest of its environment.
        starting = SERVER if FOLDERS.issuperset(self.environment) else get_context("spawn")
        serve, ranks = (_serve_forked, [theirs]) if self.is_forked else (_serve, theirs)
        for rank, there in enumerate(ranks):
            args = there, rank, self.size, str(rendezvous), variables
            self.processes.append(starting.Process(target=serve, args=args, daemon=True))
        for process in self.processes:
            process.start()
        for there in theirs:
            there.close()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 90) -> list[Any]:
        """Return each rank's result of ``function(rank, *args)``; ``RankError`` if one raised."""
        outcomes = self.outcomes(function, *args, timeout=timeout)
        for rank, (value, error) in enumerate(outcomes):
            if error:
                raise RankError(f"rank {rank}:\n{error}")
            del value
        return [value for value, _ in outcomes]

    def outcomes(
        self, function: Callable[..., Any], *args: Any, timeout: float = 90
    ) -> list[tuple[Any, str]]:
        """Return each rank's (result, traceback text); kills all ranks if one does not answer."""
        if not self.pipes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        found: list[tuple[Any, str]] = []
        ended = False
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(timeout):
                self.close()
                raise RankError(f"rank {rank} did not answer within {timeout} s: {found}")
            try:
                found.append(pipe.recv())
            except EOFError:
                ended = True
                found.append((None, "the process ended"))
        if ended:
            self.close()
        return found

    def close(self) -> None:
        """End the processes; none outlives this call."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                kill = os.killpg if self.is_forked else os.kill
                kill(process.pid, signal.SIGKILL)
                process.join()
        self.pipes, self.processes = [], []
        self.folder.cleanup()


def _serve_forked(
    pipes: list[Connection], first: int, size: int, rendezvous: str, variables: dict[str, str]
) -> None:
    """Import once for all ranks, which are a group of processes, and end with the last of them."""
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(variables)
    importlib.import_module("tests.preloaded")
    for rank, pipe in enumerate(pipes, first):
        if os.fork():
            continue
        try:
            for other in pipes:
                if other is not pipe:
                    other.close()
            _serve(pipe, rank, size, rendezvous, variables)
        finally:
            os._exit(1)
    for pipe in pipes:
        pipe.close()
    for _ in pipes:
        os.wait()


def _serve(
    pipe: Connection, rank: int, size: int, rendezvous: str, variables: dict[str, str]
) -> None:
    faulthandler.enable()  # a crash says where: the test that sees it shows what was printed
    os.environ.clear()
    os.environ.update(variables)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((function(rank, *args), ""))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
    if dist.is_initialized():
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads may still hold a connection to a rank that was killed
