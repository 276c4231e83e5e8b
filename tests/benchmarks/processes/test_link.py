"""The emulated link: it limits, joins all ranks, and nothing of it or of its ranks stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from benchmarks.processes import link as links
from benchmarks.processes.link import LinkError, available, rate_limited_link, remove_stale_links
from benchmarks.processes.ranks import RanksError, run_ranks

NO_LINK = available()
needs_link = pytest.mark.skipif(NO_LINK is not None, reason=f"no emulated link here: {NO_LINK}")

BYTES = 4 << 19
TIMED = """
import time, torch, torch.distributed as dist
from benchmarks.processes.ranks import run_rank

def all_reduce(rank, size):
    original = torch.randn(1 << 19, generator=torch.Generator().manual_seed(rank))
    seconds = []
    for _ in range(3):
        values = original.clone()
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - start)
    others = [torch.randn(1 << 19, generator=torch.Generator().manual_seed(r)) for r in range(size)]
    torch.testing.assert_close(values, torch.stack(others).sum(0))
    return min(seconds)

def to_rank_0(senders, rank):
    tensors = [torch.randn(1 << 19) for _ in senders]
    dist.barrier()
    start = time.perf_counter()
    if rank == 0:
        for work in [dist.irecv(t, src) for t, src in zip(tensors, senders)]:
            work.wait()
    elif rank in senders:
        dist.send(tensors[0], 0)
    return time.perf_counter() - start

def pairs(rank):
    seconds = []
    values = torch.randn(1 << 19)
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        if rank % 2:
            dist.recv(values, rank - 1)
        else:
            dist.send(values, rank + 1)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    return min(seconds)

def body(group):
    rank, size = group.rank(), group.size()
    print("all-reduce", all_reduce(rank, size))
    if size == 4:
        # The first time of each pair connects.
        to_rank_0([1, 2, 3], rank)
        for senders in [1], [1, 2, 3]:
            print("to rank 0 from", len(senders), min(to_rank_0(senders, rank) for _ in range(2)))
        print("pairs", pairs(rank))

run_rank(body)
"""


@pytest.fixture(autouse=True, scope="module")
def in_the_repository() -> Iterator[None]:
    """Processes that the tests start find ``benchmarks`` in their working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[3])
        yield


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def own_namespaces() -> list[str]:
    """Of this process only: other programs on the machine may have links too."""
    return [name for name in links._namespaces() if name.startswith(f"overlapc-{os.getpid()}-")]


@dataclass(frozen=True)
class Timed:
    """What ranks over a link of 100 Mbit/s measured."""

    outputs: list[str]
    """Of each rank."""
    saved_up: float
    """Seconds that a burst may spare, of what the link had saved up before."""

    def seconds(self, what: str) -> list[float]:
        """Of each rank."""
        return [float(output.split(what)[1].split()[0]) for output in self.outputs]


@pytest.fixture(scope="module")
def timed() -> Callable[[int], Timed]:
    """Call it with the number of ranks: they are started once."""

    @cache
    def run(ranks: int) -> Timed:
        with rate_limited_link(ranks, "100mbit") as link:
            done = run_ranks([python(TIMED)] * ranks, link, timeout=60, echo=None).check()
        assert own_namespaces() == []
        return Timed([result.output for result in done.results], link.refill_seconds)

    return run


@needs_link
@pytest.mark.alone
@pytest.mark.parametrize("ranks", [4, pytest.param(2, marks=pytest.mark.long)])
def test_all_reduce_takes_what_the_rate_says(timed: Callable[[int], Timed], ranks: int) -> None:
    # Of a ring, each rank sends 2(p-1)/p of the bytes.
    sent = 2 * (ranks - 1) / ranks * BYTES
    ideal, found = sent * 8 / 100e6, timed(ranks)
    for seconds in found.seconds("all-reduce"):
        # The upper limit is wide, as other programs may want the cores.
        assert ideal - found.saved_up < seconds < 4 * ideal


@needs_link
@pytest.mark.alone
def test_senders_to_one_rank_share_what_it_can_receive(timed: Callable[[int], Timed]) -> None:
    found = timed(4)
    alone, together = (found.seconds(f"to rank 0 from {senders}")[0] for senders in (1, 3))
    ideal = BYTES * 8 / 100e6
    assert ideal - found.saved_up < alone < 2 * ideal
    # Were only what leaves a rank limited, three senders would take no longer than one.
    assert 3 * ideal - 2 * found.saved_up < together < 6 * ideal


@needs_link
@pytest.mark.alone
def test_pairs_of_ranks_do_not_share(timed: Callable[[int], Timed]) -> None:
    found = timed(4)
    ideal = BYTES * 8 / 100e6
    for seconds in found.seconds("pairs"):
        # A hub instead of a switch would halve the rate of both pairs.
        assert ideal - found.saved_up < seconds < 1.8 * ideal


def test_loopback_needs_no_link() -> None:
    run = run_ranks([python(TIMED)] * 2, timeout=60, echo=None).check()
    assert [result.exit_code for result in run.results] == [0, 0]
    assert all("all-reduce" in result.output for result in run.results)


@needs_link
def test_an_exception_removes_the_link() -> None:
    def fails_inside() -> None:
        with rate_limited_link() as link:
            assert set(own_namespaces()) == set(link.namespaces)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_inside()
    assert own_namespaces() == []


@needs_link
def test_a_link_that_cannot_be_finished_leaves_nothing() -> None:
    with pytest.raises(LinkError, match="'tc' refused"), rate_limited_link(latency="soon"):
        pass
    assert own_namespaces() == []


@needs_link
@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 4), (signal.SIGINT, 2)])
def test_a_signal_removes_the_link_and_ends_the_ranks(number: signal.Signals, ranks: int) -> None:
    owner = start_owner(f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
with rate_limited_link({ranks}) as link:
    run_ranks([[sys.executable, "-c", SLEEPS]] * {ranks}, link, timeout=60)
""")
    assert owner.stdout is not None
    rank_pid = int(owner.stdout.readline())
    owner.send_signal(number)
    assert owner.wait(timeout=20) != 0
    assert not Path(f"/proc/{rank_pid}").exists()
    assert not [name for name in links._namespaces() if name.startswith(f"overlapc-{owner.pid}-")]


@needs_link
@pytest.mark.parametrize("ranks", [2, 4])
def test_links_of_killed_owners_are_removed_with_their_ranks_and_no_others(ranks: int) -> None:
    owner = start_owner(f"""
with rate_limited_link({ranks}) as link:
    run_ranks([[sys.executable, "-c", SLEEPS]] * {ranks}, link, timeout=60)
""")
    assert owner.stdout is not None
    rank_pid = int(owner.stdout.readline())
    with rate_limited_link() as alive:
        owner.kill()
        owner.wait(timeout=20)
        assert Path(f"/proc/{rank_pid}").exists(), "SIGKILL leaves ranks: else this tests nothing"
        removed = remove_stale_links()
        members = {f"overlapc-{owner.pid}-0-{rank}" for rank in range(ranks)}
        hub = {f"overlapc-{owner.pid}-0-hub"} if ranks > 2 else set()
        assert members | hub <= set(removed)
        assert set(alive.namespaces) <= set(links._namespaces())
    wait_until_gone(rank_pid)


def start_owner(body: str) -> subprocess.Popen[str]:
    """A process with a link, whose rank 0 prints its pid and then sleeps."""
    code = f"""
import sys
from benchmarks.processes.link import rate_limited_link
from benchmarks.processes.ranks import run_ranks
SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
{body}
"""
    return subprocess.Popen(
        python(code), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def wait_until_gone(pid: int) -> None:
    """An orphan is reaped by init, which may take a moment; a zombie runs no more."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")


def test_a_rank_that_fails_ends_the_others_and_is_named() -> None:
    argv = [python("import time; time.sleep(60)"), python("raise SystemExit('boom 17')")]
    start = time.monotonic()
    run = run_ranks(argv, timeout=60, echo=None)
    assert time.monotonic() - start < 20
    assert run.first_failed == 1
    assert run.results[0].exit_code == -signal.SIGKILL
    with pytest.raises(RanksError, match=r"Rank 1 ended with exit code 1(.|\n)*boom 17"):
        run.check()


def test_ranks_that_hang_end_in_time_with_all_they_started() -> None:
    hangs = "import subprocess, sys; subprocess.run(['sleep', '61.25'])"
    start = time.monotonic()
    run = run_ranks([python(hangs)] * 2, timeout=1, echo=None)
    assert time.monotonic() - start < 10
    assert run.timed_out
    assert run.first_failed is None
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 61.25" not in running
    with pytest.raises(RanksError, match="did not end in time"):
        run.check()


def test_ranks_are_pinned_to_different_cores_where_there_are_enough() -> None:
    code = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    run = run_ranks([python(code)] * 2, timeout=20, env={"OMP_NUM_THREADS": "3"}, echo=None)
    cores = sorted(os.sched_getaffinity(0))
    for result in run.results:
        assert result.output.strip() == f"[{cores[result.rank % len(cores)]}] 3"


@pytest.mark.parametrize("rate", ["1gb", "fast", "0mbit", "-1gbit", "1 gbit"])
def test_a_rate_that_is_none_is_refused(rate: str) -> None:
    with pytest.raises(LinkError, match="not the rate"), rate_limited_link(2, rate):
        pass


def test_rates_and_sizes_are_read_as_tc_reads_them() -> None:
    assert links.bits_per_second("300mbit") == 3e8
    assert links.bits_per_second("2.5gbit") == 2.5e9
    assert links.size_in_bytes("512kb") == 524288
    link = links.Link("1gbit", "512kb", ("a", "b"))
    assert link.refill_seconds == pytest.approx(4.194e-3, rel=1e-3)


def test_without_the_tools_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    available.cache_clear()
    try:
        reason = available()
    finally:
        available.cache_clear()
    assert reason is not None
    assert "'ip' is not installed" in reason
