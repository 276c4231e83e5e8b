"""Real gloo processes that run test functions: one pair a session, fresh ones where they break."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import get_context
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
        self.pipes: list[Connection] = []
        self.processes = []
        self._start()

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="overlapc-ranks-")
        rendezvous = Path(self.folder.name) / "store"
        # Of today: the server's own are of the day when it was started.
        variables = {**os.environ, "XDG_CACHE_HOME": self.folder.name, **self.environment}
        # What is imported by the server has read the rest of its environment.
        starting = SERVER if FOLDERS.issuperset(self.environment) else get_context("spawn")
        for rank in range(self.size):
            here, there = starting.Pipe()
            process = starting.Process(
                target=_serve,
                args=(there, rank, self.size, str(rendezvous), variables),
                daemon=True,
            )
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

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
                process.kill()
                process.join()
        self.pipes, self.processes = [], []
        self.folder.cleanup()


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
