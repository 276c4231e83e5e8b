"""Rate-limited links between processes of one machine: network namespaces, veth and ``tc tbf``.

Each rank has a namespace of its own. Two ranks are joined by one veth pair; more of them by a
bridge in a further namespace. Nothing is made in the machine's own namespace, so a link takes no
address and no interface of the machine, and removing its namespaces removes all of it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes.termination import uninterrupted, unwound_by_signals
from overlapc.errors import OverlapcError

INTERFACE = "link0"
"""Name of the interface inside every rank's namespace."""

PREFIX = "overlapc"
"""Namespaces are called ``overlapc-PID-NUMBER-MEMBER``; the owner's pid tells which are stale."""

BURST = "128kb"
"""Token bucket. A real link has none, so it should be small; but below 64 KiB and a header, ``tbf``
cuts every offloaded segment into packets, which was seen to double a GEMM's time beside it. Between
128kb and 512kb no such cost was measured."""

LATENCY = "200ms"
"""Longest wait in the queue before a packet is dropped; long, so that TCP sees delay, not loss."""

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_SIZES = {"b": 1, "kb": 2**10, "mb": 2**20}
_serial_numbers = itertools.count()


class LinkError(OverlapcError):
    """A link that was asked for wrongly, or that cannot be made here."""


@dataclass(frozen=True)
class Link:
    """An emulated full-duplex link between ranks; exists only inside ``rate_limited_link``."""

    rate: str
    """Of each direction, as ``tc`` spells it: ``1gbit``, ``300mbit``."""
    burst: str
    """Bytes that pass at once after silence, as ``tc`` spells them."""
    namespaces: tuple[str, ...]
    """One per rank."""
    interface: str = INTERFACE
    """The rank's interface, for ``GLOO_SOCKET_IFNAME``."""

    @property
    def ranks(self) -> int:
        """Members of the link."""
        return len(self.namespaces)

    @property
    def refill_seconds(self) -> float:
        """Silence after which the token bucket is full again: the rest between two measurements."""
        return size_in_bytes(self.burst) * 8 / bits_per_second(self.rate)

    def command(self, rank: int, argv: Sequence[str]) -> tuple[str, ...]:
        """``argv`` as ``rank`` must be started: the same process, inside its namespace."""
        return ("ip", "netns", "exec", self.namespaces[rank], *argv)

    def __str__(self) -> str:
        return f"emulated link, {self.rate} (veth + tc tbf)"


def bits_per_second(rate: str) -> float:
    """``"300mbit"`` → 3e8. Anything else than NUMBER[k|m|g]bit is a ``LinkError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    if match is None or float(match[1]) == 0:
        raise LinkError(
            f"{rate!r} is not the rate of a link.",
            where="the rate of a link",
            remedy="write it as 300mbit or 1gbit",
        )
    return float(match[1]) * _UNITS[match[2]]


def size_in_bytes(size: str) -> int:
    """``"512kb"`` → 524288, as ``tc`` reads it. Anything else than NUMBER[k|m]b is an error."""
    match = re.fullmatch(r"(\d+)([km]?b)", size)
    if match is None or int(match[1]) == 0:
        raise LinkError(
            f"{size!r} is not the burst of a link.",
            where="the burst of a link",
            remedy="write it as 512kb",
        )
    return int(match[1]) * _SIZES[match[2]]


@contextmanager
def rate_limited_link(
    ranks: int = 2, rate: str = "1gbit", *, burst: str = BURST, latency: str = LATENCY
) -> Iterator[Link]:
    """Make a link, and remove it however the block ends, SIGINT and SIGTERM included.

    Links left behind by processes that were killed are removed first.
    """
    if ranks < 2:
        raise LinkError(
            f"A link between {ranks} ranks joins nothing.",
            where="the number of ranks",
            remedy="ask for two ranks or more",
        )
    _check(rate, burst)
    remove_stale_links()
    name = f"{PREFIX}-{os.getpid()}-{next(_serial_numbers)}"
    link = Link(rate, burst, tuple(f"{name}-{rank}" for rank in range(ranks)))
    remove = functools.partial(_remove_own, os.getpid(), name)
    atexit.register(remove)
    with unwound_by_signals():
        try:
            _make(link, hub=f"{name}-hub", latency=latency)
            yield link
        finally:
            remove()
            atexit.unregister(remove)


@functools.cache
def available() -> str | None:
    """None where links can be made, else the reason why not. Found out by making one."""
    try:
        with rate_limited_link():
            return None
    except LinkError as error:
        return error.what


def remove_stale_links() -> list[str]:
    """Remove the namespaces of links whose owner is dead, and what still runs in them."""
    stale = []
    for name in _namespaces():
        match = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-\w+", name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(name)
            stale.append(name)
    return stale


def _check(rate: str, burst: str) -> None:
    bits_per_second(rate)
    size_in_bytes(burst)


def _make(link: Link, *, hub: str, latency: str) -> None:
    limit = ("root", "tbf", "rate", link.rate, "burst", link.burst, "latency", latency)
    for namespace in link.namespaces:
        _run("ip", "netns", "add", namespace)
    if link.ranks == 2:
        first, second = link.namespaces
        _join((first, link.interface), (second, link.interface))
    else:
        _join_by_bridge(link, hub, limit)
    for rank, namespace in enumerate(link.namespaces):
        _run("ip", "-n", namespace, "addr", "add", _address(rank), "dev", link.interface)
        for interface in ("lo", link.interface):
            _run("ip", "-n", namespace, "link", "set", interface, "up")
        _run("tc", "-n", namespace, "qdisc", "add", "dev", link.interface, *limit)


def _join_by_bridge(link: Link, hub: str, limit: Sequence[str]) -> None:
    """A switch: each of its ports is limited too, so that several senders share one receiver."""
    _run("ip", "netns", "add", hub)
    _run("ip", "-n", hub, "link", "add", "bridge0", "type", "bridge")
    _run("ip", "-n", hub, "link", "set", "bridge0", "up")
    for rank, namespace in enumerate(link.namespaces):
        port = f"port{rank}"
        _join((namespace, link.interface), (hub, port))
        _run("ip", "-n", hub, "link", "set", port, "master", "bridge0", "up")
        _run("tc", "-n", hub, "qdisc", "add", "dev", port, *limit)


def _join(one: tuple[str, str], other: tuple[str, str]) -> None:
    """A veth pair between two (namespace, interface), without IPv6 addresses of its own."""
    pair = ["ip", "link", "add", one[1], "netns", one[0], "type", "veth"]
    _run(*pair, "peer", "name", other[1], "netns", other[0])
    for namespace, interface in (one, other):
        _run("ip", "-n", namespace, "link", "set", interface, "addrgenmode", "none")


def _address(rank: int) -> str:
    """Only seen inside the namespaces, so every link can use the same ones."""
    return f"10.77.0.{rank + 1}/24"


def _remove_own(owner: int, link_name: str) -> None:
    """Not in a fork of the owner, which inherits its ``atexit`` list."""
    if os.getpid() != owner:
        return
    with uninterrupted():
        for name in _namespaces():
            if name.startswith(f"{link_name}-"):
                _remove(name)


def _remove(namespace: str) -> None:
    """Kill what runs in it first: a namespace lives on, nameless, while a process is inside."""
    inside = _try(lambda: _run("ip", "netns", "pids", namespace)) or ""
    for pid in inside.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _try(lambda: _run("ip", "netns", "del", namespace))


def _namespaces() -> list[str]:
    listing = _try(lambda: _run("ip", "netns", "list")) or ""
    return [line.split()[0] for line in listing.splitlines() if line.strip()]


def _try(action: Callable[[], str]) -> str | None:
    """For cleaning up, where another process may have been faster."""
    with contextlib.suppress(LinkError):
        return action()
    return None


def _run(*command: str) -> str:
    remedy = "run as root with iproute2 installed, or use loopback"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        what = f"The program {command[0]!r} is not installed."
        raise LinkError(what, where=" ".join(command), remedy=remedy) from error
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip() or f"exit status {done.returncode}"
    raise LinkError(f"{command[0]!r} refused: {message}.", where=" ".join(command), remedy=remedy)
