"""Gathers before GEMMs on a recorded device: what has come is computed, and nothing waits on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from overlapc.runtime.chunked.consumers import Consumer
from overlapc.runtime.cutting.layout import Dealing, consumer_parts
from tests.runtime.programs.cases import CASES
from tests.runtime.signaled.fake_gpu import Driver, Gpu, Graph, Work, in_memory_of, present

K, N = 4, 6
COUNTS = (3, 1, 2)
"""Rows of each group of every rank."""
SEEDS = range(12)


class Link:
    """Collectives on a stream of their own, as NCCL's; rank r has r + 1 times what this one has."""

    collective = "all_gather"

    def __init__(self, gpu: Gpu, ranks: int) -> None:
        self.gpu, self.ranks, self.sent = gpu, ranks, 0
        self.stream: Any = torch.cuda.Stream("link")

    def start(self, group: Any, out: torch.Tensor, sent: torch.Tensor, *_: Any) -> Any:
        def move() -> None:
            out.copy_(torch.cat([(rank + 1) * sent for rank in range(self.ranks)]))

        self.stream.wait_stream(self.gpu.stream)
        work = Work(f"collective {self.sent}", [move])
        self.gpu.enqueue(work, self.stream)
        self.sent += 1
        return Arrival(self.gpu, work)


class Arrival:
    """Waiting holds the current stream, not the host."""

    def __init__(self, gpu: Gpu, work: Work) -> None:
        self.gpu, self.work = gpu, work

    def wait(self) -> None:
        self.gpu.enqueue(Work(f"after {self.work.name}", after=[self.work]))


class Call:
    """A gather and the GEMM that reads it."""

    def __init__(self, gpu: Gpu, ranks: int, me: int, seed: int) -> None:
        self.gpu, self.ranks, self.me = gpu, ranks, me
        each = sum(COUNTS)
        local, parts = consumer_parts(Dealing("all_gather", 0, each * ranks, ranks, me), COUNTS)
        program = CASES["mm"].consumer()
        sender: Any = Link(gpu, ranks)
        kept = [((each * ranks, columns), torch.float32) for columns in (N, K)]
        self.chain = Consumer(program, sender, local, parts, ranks, False, kept)
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.randn(each, K, generator=generator)
        self.b = torch.randn(K, N, generator=generator)

    def __call__(self) -> list[torch.Tensor]:
        group: Any = "group"
        with in_memory_of(self.gpu):
            return self.chain([self.a, self.b], group)

    def use(self, results: list[torch.Tensor]) -> None:
        """Enqueue what reads the results, and writes the operand for the next call."""

        def consume() -> None:
            # Its own rows are computed from what it has, not from what it is sent.
            factors = [1 if rank == self.me else rank + 1 for rank in range(self.ranks)]
            rows = torch.cat([factor * self.a for factor in factors])
            torch.testing.assert_close(results[0], rows @ self.b)
            torch.testing.assert_close(results[1], rows)
            self.a.mul_(-1.5)

        self.gpu.enqueue(Work("consumer", [consume]))


@contextmanager
def device(seed: int = 0) -> Iterator[Gpu]:
    gpu = Gpu(seed)
    with present(gpu, Driver(gpu)):
        yield gpu


@pytest.mark.parametrize(("ranks", "me"), [(2, 0), (2, 1), (3, 1)])
def test_every_order_gives_the_gathered_product(ranks, me):
    for seed in SEEDS:
        with device(seed) as gpu:
            call = Call(gpu, ranks, me, seed)
            for _ in range(3):
                call.use(call())
            gpu.synchronize()
            graph = Graph(gpu)
            graph.capture_begin()
            call.use(call())
            graph.capture_end()
            for _ in range(3):
                graph.replay()
            gpu.synchronize()


def before(gpu: Gpu, one: str, other: str) -> bool:
    return gpu.happened.index(one) < gpu.happened.index(other)


def seen(ranks: int = 2) -> set[tuple[bool, bool]]:
    """Over many orders: whether own rows, and those that came first, were computed before more
    came."""
    found = set()
    for seed in range(40):
        with device(seed) as gpu:
            call = Call(gpu, ranks, 0, seed)
            call.use(call())
            issued = gpu.issued
            gpu.synchronize()
            gemms = [at for at, what in enumerate(gpu.happened) if what.endswith("mm begins")]
            first_came, last_came = (
                gpu.happened.index(f"collective {n} ends") for n in (0, len(COUNTS) - 1)
            )
            found.add((gemms[0] < first_came, gemms[1] < last_came))
            # All are under way before anything is computed, and nothing polls on the device.
            sent = [issued.index(f"collective {n}") for n in range(len(COUNTS))]
            assert max(sent) < min(at for at, what in enumerate(issued) if what.endswith("mm"))
            assert not any(what.startswith("wait for") or "driver" in what for what in issued)
    return found


def test_own_rows_are_computed_before_any_comes_and_others_as_they_come():
    assert (True, True) in seen()


def test_a_consumer_that_waits_for_everything_first_is_seen(monkeypatch):
    start = Consumer._start

    def waits(self: Consumer, *given: Any) -> Any:
        work, *buffers = start(self, *given)
        work.wait()
        return (work, *buffers)

    monkeypatch.setattr(Consumer, "_start", waits)
    assert not any(own or others for own, others in seen())


def test_a_consumer_that_does_not_wait_is_seen(monkeypatch):
    monkeypatch.setattr(Arrival, "wait", lambda self: None)
    with pytest.raises(AssertionError):
        test_every_order_gives_the_gathered_product(2, 0)
