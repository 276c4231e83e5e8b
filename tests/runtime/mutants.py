"""Mistakes that an overlapped chain could make, each as a context in which it makes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from overlapc import ledger
from overlapc.runtime.chunked import computing
from overlapc.runtime.cutting import layout
from overlapc.runtime.cutting.units import Units
from overlapc.runtime.preparing import Chain
from overlapc.runtime.ranks.sending import Sender

DELAY = 0.004
"""Seconds that one rank comes late to every collective: far longer than a small one takes."""


@contextmanager
def destinations_reversed(rank: int) -> Iterator[None]:
    """What is meant for the first rank goes to the last."""
    original = layout.dealt

    def dealt(grid, start, end, ranks=None):
        backwards = [(r, r + 1) for r in reversed(range(grid[1]))]
        return original(grid, start, end, backwards if ranks is None else ranks)

    with patch.object(layout, "dealt", dealt):
        yield


@contextmanager
def sources_reversed(rank: int) -> Iterator[None]:
    """What came from the last of the other ranks is taken for the first one's."""
    original = layout.Dealing.other_spans.fget
    assert original is not None
    spans = property(lambda self: original(self)[::-1])
    with patch.object(layout.Dealing, "other_spans", spans):
        yield


@contextmanager
def no_wait(rank: int) -> Iterator[None]:
    """Results are used before they have come; one rank is late, so that they have not."""
    original, works = Sender.start, []

    class Ignored:
        def wait(self) -> None:
            """Return at once."""

    def start(self, *args):
        if rank == 1:
            time.sleep(DELAY)
        works.append((original(self, *args), args))
        return Ignored()

    with patch.object(Sender, "start", start):
        yield
    for work, _ in works:
        work.wait()


@contextmanager
def first_rows_always(rank: int) -> Iterator[None]:
    """Every group takes the first rows of an operand."""

    def take_each(parts, tensor, lengths):
        return [tensor[: units.count] for units in parts]

    with patch.object(computing, "take_each", take_each):
        yield


@contextmanager
def own_offsets(rank: int) -> Iterator[None]:
    """The rows of a grouped GEMM's groups are counted from the start of the tensor."""

    def offsets(self: Units, ends: torch.Tensor) -> torch.Tensor:
        return ends.clamp(0, self.count)

    with patch.object(Units, "offsets", offsets):
        yield


@contextmanager
def put_nothing(rank: int) -> Iterator[None]:
    """What does not come to its place by itself stays away."""
    with patch.object(Units, "put", lambda self, tensor, values: None):
        yield


@contextmanager
def kept_where_it_came(rank: int) -> Iterator[None]:
    """Kept values are written in the order in which they are computed."""
    original = computing.Computation.__call__

    def call(self, index, operands, kept, out=None):
        before = sum(units.count for units in self.units[:index])
        moved = [torch.roll(tensor, -before, 0) for tensor in kept]
        results = original(self, index, operands, moved, out)
        for tensor, changed in zip(kept, moved, strict=True):
            tensor.copy_(torch.roll(changed, before + 1, 0))
        return results

    with patch.object(computing.Computation, "__call__", call):
        yield


@contextmanager
def guarded_rows(rank: int) -> Iterator[None]:
    """Compiling compares a symbolic size, and so the graph is good for some row counts only."""
    original = ledger.key_of

    def key_of(graph_module, example_inputs, uuid):
        any(size > 200 for size in example_inputs if isinstance(size, torch.SymInt))
        return original(graph_module, example_inputs, uuid)

    with patch.object(ledger, "key_of", key_of):
        yield


@contextmanager
def first_rows_prepared(rank: int) -> Iterator[None]:
    """What was made ready for the first rows is taken for all that follow."""
    original = Chain.of.__func__

    class Any(dict):
        def get(self, key, default=None):
            return next(iter(self.values()), default)

    def of(cls, spec):
        chain = original(cls, spec)
        object.__setattr__(chain, "ready", Any())
        return chain

    with patch.object(Chain, "of", classmethod(of)):
        yield
