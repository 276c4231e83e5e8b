"""Triton's interpreter on memory as weak as a device's, and in step with another process.

The interpreter's stores are visible at once, and processors here keep them in order: a barrier or a
release that is missing would never be seen. So stores wait in a buffer, as other warps' do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from triton._C.libtriton import ir
from triton.runtime.interpreter import interpreter_builder

RELEASING = (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
DEVICE_WIDE = (ir.MEM_SYNC_SCOPE.GPU, ir.MEM_SYNC_SCOPE.SYSTEM)


class StillPolling(AssertionError):
    """A waiter reads its counter on and on."""


@dataclass
class Stores:
    """Stores that are not visible yet: of each program those before its last barrier, and since."""

    generator: random.Random
    before: dict[Any, list[Callable[[], object]]] = field(default_factory=dict)
    since: dict[Any, list[Callable[[], object]]] = field(default_factory=dict)

    def barrier(self, program: Any) -> None:
        """What the program has stored happens before what one of its threads does next."""
        self.before.setdefault(program, []).extend(self.since.pop(program, ()))

    def release(self, program: Any) -> None:
        """What happens before is visible, in whatever order it becomes so."""
        stores = self.before.pop(program, [])
        for store in self.generator.sample(stores, len(stores)):
            store()

    def end(self) -> None:
        """The kernel has ended: everything is visible."""
        for program in [*self.before, *self.since]:
            self.barrier(program)
            self.release(program)


@contextmanager
def weak_stores(generator: random.Random, after_add: Callable[[], object]) -> Iterator[None]:
    """Let a store be visible when an add of its program releases it across a barrier, at device
    scope, or when the kernel has ended. ``after_add`` is called behind every add."""
    builder: Any = interpreter_builder
    stores = Stores(generator)
    store, add, barrier = (
        builder.create_masked_store, builder.create_atomic_rmw, builder.create_barrier,
    )  # fmt: skip

    def added(op: Any, ptr: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        if sem in RELEASING and scope in DEVICE_WIDE:
            stores.release(builder.grid_idx)
        result = add(op, ptr, value, mask, sem, scope)
        after_add()
        return result

    builder.create_masked_store = lambda *its: stores.since.setdefault(builder.grid_idx, []).append(
        lambda: store(*its)
    )
    builder.create_barrier = lambda: stores.barrier(builder.grid_idx)
    builder.create_atomic_rmw = added
    try:
        yield
        stores.end()
    finally:
        builder.create_masked_store, builder.create_atomic_rmw = store, add
        builder.create_barrier = barrier


@contextmanager
def counted_polls(count: Callable[[], object], most: int) -> Iterator[None]:
    """Call ``count`` before every read of a counter; ``StillPolling`` after ``most`` of them."""
    builder: Any = interpreter_builder
    load, polls = builder.create_masked_load, 0

    def polled(*its: Any) -> Any:
        nonlocal polls
        *_, is_volatile = its
        if is_volatile:
            count()
            polls += 1
            if polls > most:
                raise StillPolling(f"The counter was read {most} times.")
        return load(*its)

    builder.create_masked_load = polled
    try:
        yield
    finally:
        builder.create_masked_load = load


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for another process; AssertionError after so long."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the other process does nothing"
        time.sleep(0.0002)
