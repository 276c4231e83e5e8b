"""Memory of a kernel: tensors of the host, shared memory of a CTA, and copies on their way.

What no kernel may do raises: an address outside every tensor that it was given, one that is not a
multiple of what is moved, and shared memory that another warp wrote or will write with no barrier
between. What has not arrived, or was never written, is NaN.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POISON = 0xFF
"""A byte of memory that nobody wrote: NaN in every float, -1 in every integer."""
NOBODY = -1
OVERWRITTEN = "a warp writes shared memory that another uses, with no barrier between"


class BadAccess(AssertionError):
    """What compute-sanitizer would tell of a kernel."""


class Tensors:
    """Memory of the host that a launch may touch."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.parts = [
            (low, size, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(low)))
            for low, size in sorted({each for each in ranges if each[1]})
        ]

    def places(self, addresses: Any, count: int) -> list[tuple[Any, Any, Any]]:
        """Of addresses that all have to be inside: which ones lie in one tensor, the bytes of that,
        and where each begins there."""
        if (addresses % np.uint64(count)).any():
            raise BadAccess(f"{count} bytes are moved at an address that is no multiple of that")
        found, missing = [], np.ones(len(addresses), bool)
        for low, size, held in self.parts:
            at = addresses - np.uint64(low)  # below it wraps around, far beyond its size
            inside = missing & (at < size) & (at + np.uint64(count) <= size)
            if inside.any():
                found.append((inside, held, at[inside].astype(np.int64)))
                missing &= ~inside
        if missing.any():
            where = sorted({hex(int(each)) for each in addresses[missing]})
            raise BadAccess(f"{len(where)} addresses outside every tensor, the first {where[0]}")
        return found

    def load(self, addresses: Any, count: int) -> Any:
        """The bytes at each address, ``[addresses, count]``."""
        found = np.empty((len(addresses), count), np.uint8)
        for inside, held, at in self.places(addresses, count):
            found[inside] = held[at[:, None] + np.arange(count)]
        return found

    def store(self, addresses: Any, content: Any) -> None:
        for inside, held, at in self.places(addresses, content.shape[1]):
            held[at[:, None] + np.arange(content.shape[1])] = content[inside]


@dataclass
class Copy:
    """Bytes on their way from a tensor to shared memory."""

    source: Any
    at: Any
    size: int
    taken: Any
    """How many bytes come from the source, of each; zeros behind them."""
    warps: Any


@dataclass
class Shared:
    """Shared memory of a CTA, of which warps see what others did behind a barrier only."""

    size: int
    content: Any = field(init=False)
    writer: Any = field(init=False)
    reader: Any = field(init=False)
    multiplied: Any = field(init=False)
    """By how many products that nobody has waited for each byte is read."""
    unseen: Any = field(init=False)
    """Which warp wrote a byte that units beside the threads may not see yet."""

    def __post_init__(self) -> None:
        self.content = np.full(self.size, POISON, np.uint8)
        self.multiplied = np.zeros(self.size, np.int16)
        self.unseen = np.full(self.size, NOBODY, np.int16)
        self.barrier()

    def barrier(self) -> None:
        """All warps have waited for each other."""
        self.writer, self.reader = (np.full(self.size, NOBODY, np.int16) for _ in range(2))
        self.several = np.zeros(self.size, bool)

    def load(self, at: Any, count: int, warps: Any) -> Any:
        """The bytes at each place, read by a thread of each of those warps."""
        places = self._inside(at, count)
        readers = np.broadcast_to(np.asarray(warps)[:, None], places.shape)
        writer = self.writer[places]
        if ((writer != NOBODY) & (writer != readers)).any():
            raise BadAccess(
                "a warp reads shared memory that another wrote, with no barrier between"
            )
        before = self.reader[places]
        self.several[places[(before != NOBODY) & (before != readers)]] = True
        self.reader[places] = readers
        return self.content[places]

    def store(self, at: Any, content: Any, warps: Any) -> None:
        places = self._claimed(at, content.shape[1], warps)
        self.content[places] = content
        if (self.content[places] != content).any():
            raise BadAccess("threads write other bytes to one place at once")
        self.unseen[places] = np.asarray(warps)[:, None]

    def _claimed(self, at: Any, count: int, warps: Any) -> Any:
        places = self._inside(at, count)
        writers = np.broadcast_to(np.asarray(warps)[:, None], places.shape)
        for other in (self.reader[places], self.writer[places]):
            if ((other != NOBODY) & (other != writers)).any():
                raise BadAccess(OVERWRITTEN)
        if self.several[places].any():
            raise BadAccess(
                "a warp writes shared memory that several read, with no barrier between"
            )
        self._check_products(places)
        self.writer[places] = writers
        return places

    def _check_products(self, places: Any) -> None:
        if self.multiplied[places].any():
            raise BadAccess("shared memory is written that a product reads which nobody waited for")

    def show(self, warps: Any) -> None:
        """Let units see what these warps wrote, or what all did before the last barrier."""
        # A barrier before the fence makes what others wrote its own.
        self.unseen[np.isin(self.unseen, warps) | (self.writer == NOBODY)] = NOBODY

    def send_to(self, places: Any) -> None:
        """A unit writes there: what stands there is lost."""
        if (self.writer[places] != NOBODY).any() or (self.reader[places] != NOBODY).any():
            raise BadAccess("a unit writes shared memory that a warp uses, with no barrier between")
        self._check_products(places)
        self.content[places] = POISON

    def arrive_from_unit(self, places: Any, content: Any) -> None:
        """What a unit wrote is there for all who wait for it."""
        self.content[places] = content
        self.unseen[places] = NOBODY

    def load_by_unit(self, places: Any) -> Any:
        """What a product reads, until it is waited for."""
        if (self.unseen[places] != NOBODY).any():
            raise BadAccess("a product reads shared memory that was written with no fence between")
        self.multiplied[places] += 1
        return self.content[places]

    def release(self, places: Any) -> None:
        """A product that read these is over."""
        self.multiplied[places] -= 1

    def send(self, copy: Copy) -> None:
        """What is overwritten by a copy is lost when it begins."""
        places = self._claimed(copy.at, copy.size, copy.warps)
        self.content[places] = POISON

    def arrive(self, copy: Copy, tensors: Tensors) -> None:
        """The copy is done: who waited for it sees it, and others behind a barrier."""
        content = np.zeros((len(copy.at), copy.size), np.uint8)
        for taken in np.unique(copy.taken):
            some = copy.taken == taken
            if taken:
                content[some, :taken] = tensors.load(copy.source[some], int(taken))
        places = copy.at[:, None].astype(np.int64) + np.arange(copy.size)
        self.content[places] = content
        self.writer[places] = self.unseen[places] = np.asarray(copy.warps)[:, None]

    def _inside(self, at: Any, count: int) -> Any:
        if (at % count).any():
            raise BadAccess(f"{count} bytes are moved at a place that is no multiple of that")
        if len(at) and int(at.max()) + count > self.size:
            raise BadAccess(
                f"shared memory has {self.size} bytes, and {int(at.max())} is addressed"
            )
        return at[:, None].astype(np.int64) + np.arange(count)


@dataclass
class Copies:
    """Groups of copies of each thread, of which it waits for all but the last ones."""

    groups: list[list[Copy]] = field(default_factory=lambda: [[]])

    def add(self, copy: Copy) -> None:
        self.groups[-1].append(copy)

    def commit(self) -> None:
        self.groups.append([])

    def wait(self, pending: int) -> Sequence[Copy]:
        """Copies of all groups but so many of the last ones that are committed."""
        done, open_group = self.groups[:-1], self.groups[-1]
        kept = done[len(done) - pending :] if pending else []
        ready = done[: len(done) - pending] if pending else done
        self.groups = [*kept, open_group]
        return [copy for group in ready for copy in group]
