"""Start one process per rank on this machine, wait for all of them, and never hang.

The ranks meet through a file, so nothing needs a port; their tensors travel over a link of
``benchmarks.processes.link``, or over loopback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from benchmarks.processes.link import Link
from benchmarks.processes.termination import uninterrupted, unwound_by_signals
from overlapc.errors import OverlapcError

if TYPE_CHECKING:
    import torch.distributed as dist

RENDEZVOUS = "RANKS_RENDEZVOUS"
"""Environment variable with the ``init_method`` of the ranks' process group."""

POLL_SECONDS = 0.05
GRACE_SECONDS = 3.0
"""After one rank failed, the others have this long to say what they saw of it."""


class RanksError(OverlapcError):
    """A rank that failed, or ranks that did not end in time."""


@dataclass(frozen=True)
class RankResult:
    """What one process left."""

    rank: int
    exit_code: int
    """As ``subprocess`` gives it: negative for the signal that ended it, ours included."""
    output: str
    """Standard output and standard error, as they came."""


@dataclass(frozen=True)
class Run:
    """What all processes left, in the order of ranks."""

    results: tuple[RankResult, ...]
    timed_out: bool
    first_failed: int | None
    """The rank that failed before any other; None if none did before the time ran out."""

    def check(self) -> Run:
        """Give back the run; a ``RanksError`` with the failing rank's last output if it failed."""
        if not self.timed_out and self.first_failed is None:
            return self
        what = "The ranks did not end in time"
        if self.first_failed is not None:
            code = self.results[self.first_failed].exit_code
            what = f"Rank {self.first_failed} ended with exit code {code}"
        told = [self.first_failed] if self.first_failed is not None else range(len(self.results))
        last = "\n".join(f"[rank {rank}] {self.results[rank].output[-2000:]}" for rank in told)
        raise RanksError(
            f"{what}; its last output:\n{last}\n" if last else f"{what}.",
            where="run_ranks",
            remedy="read the output above; give a longer timeout if they were only slow",
        )


@dataclass
class _Rank:
    """A running process and the thread that reads its output."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    def read(self, echo: TextIO | None) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if echo is not None:
                echo.write(line)
                echo.flush()

    def kill(self) -> None:
        """The whole session: a rank may have compilers running."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def run_ranks(
    argv: Sequence[Sequence[str]],
    link: Link | None = None,
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    echo: TextIO | None = sys.stdout,
) -> Run:
    """Run ``argv[rank]`` for every rank, each pinned to one core, over ``link`` or loopback.

    ``timeout`` is in seconds. ``env`` is added to this process's environment. Rank 0's output goes
    to ``echo`` as it comes. When one rank fails, or time runs out, all are killed; nothing is
    raised for it: see ``Run.check``.
    """
    if link is not None and link.ranks != len(argv):
        raise RanksError(
            f"{len(argv)} ranks cannot run over a link of {link.ranks}.",
            where="run_ranks",
            remedy="make the link for as many ranks as there are commands",
        )
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory(prefix="ranks-") as directory, unwound_by_signals():
        try:
            for rank, command in enumerate(argv):
                variables = _environment(rank, len(argv), link, Path(directory))
                ranks.append(_start(rank, command, link, {**variables, **(env or {})}))
            for rank, running in enumerate(ranks):
                _start_reading(running, echo if rank == 0 else None)
            timed_out, first_failed = _wait(ranks, timeout)
        finally:
            with uninterrupted():
                _end(ranks)
    results = tuple(
        RankResult(rank, running.process.returncode, "".join(running.output))
        for rank, running in enumerate(ranks)
    )
    return Run(results, timed_out, first_failed)


@contextmanager
def gloo_group(timeout_seconds: float = 120.0) -> Iterator[dist.ProcessGroup]:
    """In a process that ``run_ranks`` started: the group of all ranks, destroyed at the end.

    All ranks reach the end together; after an exception they do not, as others may be stuck.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=os.environ[RENDEZVOUS],
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=timeout_seconds),
    )
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_rank(body: Callable[[dist.ProcessGroup], None]) -> NoReturn:
    """The main function of a rank: run ``body`` on the group of all ranks, then end the process.

    The interpreter is not finalised: a thread of gloo that lets go of its last work while Python
    shuts down wants the GIL, and is ended with "terminate called without an active exception".
    """
    with gloo_group() as group:
        body(group)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class GroupRanks:
    """The ranks of a process group, as ``benchmarks.measuring.paired.measure`` needs them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def barrier(self) -> None:
        """Return when every rank has called it."""
        import torch.distributed as dist

        dist.barrier(self.group)

    def gather(self, value: dict[str, list[float]]) -> list[dict[str, list[float]]]:
        """Return the value of every rank, by rank."""
        import torch.distributed as dist

        values: list[dict[str, list[float]]] = [{} for _ in range(self.group.size())]
        dist.all_gather_object(values, value, self.group)
        return values


def _environment(rank: int, ranks: int, link: Link | None, directory: Path) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        RENDEZVOUS: f"file://{directory / 'rendezvous'}",
        "GLOO_SOCKET_IFNAME": "lo" if link is None else link.interface,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _start(rank: int, command: Sequence[str], link: Link | None, env: dict[str, str]) -> _Rank:
    process = subprocess.Popen(
        command if link is None else link.command(rank, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **env},
        start_new_session=True,
    )
    # Set from here, while the process is still starting: every later thread of it inherits this.
    # A `preexec_fn` would do it earlier, but is unsafe where the caller has threads.
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(process.pid, {cores[rank % len(cores)]})
    return _Rank(process)


def _start_reading(running: _Rank, echo: TextIO | None) -> None:
    running.reader = threading.Thread(target=running.read, args=(echo,), daemon=True)
    running.reader.start()


def _wait(ranks: Sequence[_Rank], timeout: float) -> tuple[bool, int | None]:
    """Whether time ran out, and which rank failed first. Returns with ranks possibly alive."""
    deadline = time.monotonic() + timeout
    first_failed: int | None = None
    while any(running.process.poll() is None for running in ranks):
        if time.monotonic() >= deadline:
            return first_failed is None, first_failed
        if first_failed is None:
            first_failed = _failed(ranks)
            if first_failed is not None:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(POLL_SECONDS)
    return False, first_failed if first_failed is not None else _failed(ranks)


def _failed(ranks: Sequence[_Rank]) -> int | None:
    codes = (running.process.poll() for running in ranks)
    return next((rank for rank, code in enumerate(codes) if code not in (None, 0)), None)


def _end(ranks: Sequence[_Rank]) -> None:
    """Nothing of the ranks runs afterwards, and their output is complete."""
    for running in ranks:
        running.kill()
    for running in ranks:
        running.process.wait()
        if running.reader is not None:
            running.reader.join(timeout=5)
