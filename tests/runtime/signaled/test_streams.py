"""What a signaled GEMM enqueues, done in many of the orders in which a device may do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from overlapc.codegen import Bands, GemmSpec
from overlapc.errors import KernelError, SignalError
from overlapc.planning.tiles import SWEEP
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.signaled import streams
from overlapc.runtime.signaled.group_tables import GroupTables
from overlapc.runtime.signaled.staged import StagedGemm
from tests.runtime.signaled.fake_gpu import (
    NOT_SUPPORTED,
    SMS,
    Deadlock,
    Driver,
    Gpu,
    Graph,
    Misuse,
    Stream,
    Work,
    in_memory_of,
    present,
)

BLOCK, K, N = 16, 5, 32
ROWS = (32, 16, 26)
SPEC = GemmSpec("float32", "float32", BLOCK, BLOCK, BLOCK, bias=True)
LEFT = 2
"""SMs for the collective."""
SEEDS = range(6)
FORK, JOIN = "comm(-3) waits for compute", "compute waits for comm(-3)"
WAITERS: dict[str, Callable[[Gpu], Driver | None]] = {
    "driver": Driver,
    "driver, not captured": lambda gpu: Driver(gpu, captures=False),
    "no bindings": lambda gpu: None,
    "driver refuses": lambda gpu: Driver(gpu, error=NOT_SUPPORTED),
}


class Gemm:
    """A kernel that computes its tiles in a random order, and may forget to announce a band."""

    spec = SPEC

    def __init__(self, gpu: Gpu, forgets: int | None = None) -> None:
        self.gpu, self.forgets = gpu, forgets

    def tiles_n(self, n: int) -> int:
        return -(-n // BLOCK)

    def __call__(self, a, b, out, *, ctas, sweep, bands, counters, inputs) -> None:
        assert (ctas, sweep) == (SMS - LEFT, SWEEP)
        (bias,) = inputs
        self.gpu.load("GEMM")
        group_of = [group for group, rows in enumerate(ROWS) for _ in range(-(-rows // BLOCK))]

        def tile(row: int, column: int) -> None:
            rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
            out[rows, columns] = a[rows] @ b[:, columns] + bias[columns]
            if (group := group_of[row // BLOCK]) != self.forgets:
                counters[group, 0] += 1

        corners = [(r, c) for r in range(0, len(a), BLOCK) for c in range(0, out.shape[1], BLOCK)]
        shuffled = self.gpu.random.sample(corners, len(corners))
        self.gpu.gemm = Work("GEMM", [lambda at=at: tile(*at) for at in shuffled])
        self.gpu.enqueue(self.gpu.gemm)


class Call:
    """Operands of a signaled GEMM, and an all-reduce of two ranks with equal ones."""

    collective, reduce = "all_reduce", "sum"

    def __init__(self, gpu: Gpu, seed: int = 0, group: str = "tp", n: int = N) -> None:
        self.gpu, self.group, self.sent = gpu, group, 0
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b, self.bias = (
            torch.randn(shape, generator=generator) for shape in ((sum(ROWS), K), (K, n), (n,))
        )

    def expected(self) -> torch.Tensor:
        return self.a @ self.b + self.bias

    def __call__(self, kernel: Any = None, **named: Any) -> torch.Tensor:
        users: Any = None
        with in_memory_of(self.gpu):
            return self.gemm(ROWS, kernel or Gemm(self.gpu))(
                self.a, self.b, users, LEFT, name=self.group, inputs=[self.bias], **named
            )

    def gemm(self, rows: tuple[int, ...], kernel: Any) -> StagedGemm:
        parts = producer_parts(Dealing("all_reduce", 0, sum(rows), 2, 0), rows)
        sender: Any = self
        return StagedGemm.of(kernel, sender, parts, result_units=sum(rows))

    def is_warm(self, rows: tuple[int, ...] = ROWS, spec: GemmSpec = SPEC) -> bool:
        return streams.is_warm(self.needed(rows, spec))

    def needed(self, rows: tuple[int, ...], spec: GemmSpec) -> Any:
        gemm = self.gemm(rows, SimpleNamespace(spec=spec))
        return gemm._needed((self.a, self.b, self.bias), self.group)

    def start(self, group: Any, out, sent, receives, sends) -> Any:
        """As a ``Sender`` does."""
        self.all_reduce(sent)
        return SimpleNamespace(wait=lambda: None)

    def all_reduce(self, band: torch.Tensor) -> None:
        self.gpu.load(f"{self.group} for {band.numel().bit_length()}")
        self.gpu.enqueue(Work(f"all-reduce {self.sent}", [lambda: self._reduce(band)]))
        self.sent = (self.sent + 1) % len(ROWS)
        if not self.sent:
            self.gpu.gemm = None

    def _reduce(self, band: torch.Tensor) -> None:
        first = int(band.storage_offset()) // band.shape[1]
        whole = self.expected()[first : first + len(band)]
        assert torch.allclose(band, whole), f"rows from {first} are sent before they are whole"
        band.mul_(2)

    def use(self, out: torch.Tensor) -> None:
        """Enqueue what reads the result, and writes the operands for the next call."""

        def consume() -> None:
            assert torch.allclose(out, 2 * self.expected()), "the result is read too early"
            self.a.mul_(-1.5)

        self.gpu.enqueue(Work("consumer", [consume]))


@contextmanager
def device(waiter: str = "driver", seed: int = 0, *, one_queue: bool = False) -> Iterator[Gpu]:
    gpu = Gpu(seed, one_queue=one_queue)
    with present(gpu, WAITERS[waiter](gpu)):
        yield gpu


@pytest.mark.parametrize("one_queue", [False, True], ids=["queues", "one queue"])
@pytest.mark.parametrize("waiter", WAITERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_order_gives_the_sums_of_whole_bands(seed, waiter, one_queue):
    with device(waiter, seed, one_queue=one_queue) as gpu:
        call = Call(gpu, seed)
        for _ in range(4):
            call.use(call())
        gpu.synchronize()


@pytest.mark.parametrize("waiter", WAITERS)
def test_the_order_of_launches(waiter):
    with device(waiter) as gpu:
        call = Call(gpu)
        call()
        gpu.synchronize()
        cold, gpu.issued = gpu.issued, []
        call()
        by_driver = waiter.startswith("driver") and waiter != "driver refuses"
        bands = []
        for group in range(len(ROWS)):
            bands += ["wait by driver" if by_driver else f"wait for {group}", f"all-reduce {group}"]
        assert gpu.issued == ["zero", FORK, "GEMM", *bands, JOIN]
        # The first call waits for the whole GEMM, and loads the kernel that waits in any case.
        bands[::2] = [f"wait for {group}" for group in range(len(ROWS))]
        assert cold[-len(bands) - 4 :] == [FORK, "GEMM", FORK, *bands, JOIN]


def overlaps(gpu: Gpu) -> bool:
    return gpu.happened.index("all-reduce 0 begins") < gpu.happened.index("GEMM ends")


def test_only_warm_calls_overlap():
    seen = set()
    for seed in range(20):
        with device(seed=seed) as gpu:
            call = Call(gpu, seed)
            for attempt in ("cold", "warm"):
                gpu.happened.clear()
                call.use(call())
                gpu.synchronize()
                seen.add((attempt, overlaps(gpu)))
    assert ("cold", True) not in seen
    assert ("warm", True) in seen


@pytest.mark.parametrize("one_queue", [False, True], ids=["queues", "one queue"])
def test_two_calls_in_flight_share_nothing(one_queue):
    for seed in SEEDS:
        with device(seed=seed, one_queue=one_queue) as gpu:
            calls = [Call(gpu, seed, "tp"), Call(gpu, seed + 1, "dp")]
            for _ in range(3):
                for call in calls:
                    call.use(call())
            gpu.synchronize()


@pytest.mark.parametrize("one_queue", [False, True], ids=["queues", "one queue"])
@pytest.mark.parametrize("waiter", WAITERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_captured_call_replays(seed, waiter, one_queue):
    with device(waiter, seed, one_queue=one_queue) as gpu:
        call = Call(gpu, seed)
        call.use(call())
        gpu.synchronize()
        graph = Graph(gpu)
        graph.capture_begin()
        call.use(call())
        graph.capture_end()
        for _ in range(10):
            graph.replay()
            gpu.synchronize()
        for _ in range(3):
            graph.replay()
        gpu.synchronize()


def test_a_first_call_in_a_capture_is_refused_before_anything_is_launched():
    with device() as gpu:
        call = Call(gpu)
        graph = Graph(gpu)
        graph.capture_begin()
        with pytest.raises(KernelError, match="during graph capture") as raised:
            call()
        assert gpu.issued == ["capture begins"]
        assert "collective" in raised.value.where
        graph.capture_end()


@pytest.fixture
def loaded():
    """A fake GPU that has run a call."""
    with device() as gpu:
        call = Call(gpu)
        call.use(call())
        gpu.synchronize()
        yield gpu


def test_new_rows_of_known_sizes_are_warm(loaded):
    assert Call(loaded, seed=1).is_warm((17, 31))
    assert not Call(loaded).is_warm((4 * sum(ROWS),))


def odd(call: Call) -> Call:
    """The same values where no 16 bytes begin."""
    call.a = torch.cat([torch.zeros(1), call.a.flatten()])[1:].view(call.a.shape)
    assert call.a.data_ptr() % 16
    return call


def averaging(call: Call) -> Call:
    call.reduce = "avg"
    return call


UNLIKE: dict[str, Callable[[Gpu], Call]] = {
    "another group": lambda gpu: Call(gpu, group="dp"),
    "columns of which there are no 16": lambda gpu: Call(gpu, n=24),
    "an address": lambda gpu: odd(Call(gpu)),
    "a reduction": lambda gpu: averaging(Call(gpu)),
}
"""What Triton compiles anew, or a library sends by another function."""


@pytest.mark.parametrize("what", UNLIKE)
def test_what_is_not_loaded_is_refused_in_a_capture(what, loaded):
    call = UNLIKE[what](loaded)
    graph = Graph(loaded)
    graph.capture_begin()
    with pytest.raises(KernelError, match="during graph capture"):
        call()
    graph.capture_end()


def test_what_another_dtype_was_sent_by_is_not_warm(loaded):
    call, half = Call(loaded), replace(SPEC, out="bfloat16")
    streams._warm.update(call.needed((256,), half))
    assert call.is_warm((256,), half)
    assert not call.is_warm((128,))  # as many bytes, by a kernel that is loaded
    streams._warm.update(call.needed((128,), SPEC))
    assert call.is_warm((128,))


def test_a_gemm_that_cannot_be_launched_leaves_nothing_behind():
    class TooLarge(Gemm):
        def __call__(self, *arguments: Any, **named: Any) -> None:
            raise RuntimeError("out of resource: shared memory")

    with device() as gpu:
        call = Call(gpu)
        with pytest.raises(KernelError, match="out of resource: shared memory"):
            call(TooLarge(gpu))
        assert gpu.issued[-1] == JOIN
        assert not any(name.startswith(("wait for", "all-reduce")) for name in gpu.issued)
        call.use(call())
        gpu.synchronize()


def test_an_error_of_a_collective_still_joins():
    with device() as gpu:
        call = Call(gpu)

        def fails(band: torch.Tensor) -> None:
            raise ConnectionError("the peer is gone")

        call.all_reduce = fails
        with pytest.raises(ConnectionError):
            call()
        assert gpu.issued[-1] == JOIN


@pytest.mark.parametrize("failing", range(len(ROWS)))
def test_a_waiter_that_cannot_run_leaves_no_collective_out(failing, monkeypatch):
    """Its peers would wait for ever; so what is left is sent after the whole GEMM."""
    hold, asked = streams.hold, []

    def fails(signals: Any, group: int, max_polls: int = 0) -> None:
        asked.append(group)
        if group == failing:
            raise RuntimeError("no kernel image is available")
        hold(signals, group, max_polls)

    for seed in SEEDS:
        with device(seed=seed) as gpu:
            call = Call(gpu, seed)
            call.use(call())
            monkeypatch.setattr(streams, "hold", fails)
            call.use(call())
            monkeypatch.setattr(streams, "hold", hold)
            gpu.synchronize()
    assert asked == [*range(failing + 1)] * len(SEEDS)


@pytest.mark.parametrize("forgotten", range(len(ROWS)))
def test_a_band_that_never_comes_is_named_and_hangs_nobody(forgotten):
    with device() as gpu:
        call = Call(gpu)
        call._reduce = lambda band: None
        with pytest.raises(SignalError, match=f"Band {forgotten} was never complete: 0 of"):
            call(Gemm(gpu, forgets=forgotten), max_polls=1000)
        call(Gemm(gpu, forgets=forgotten))
        with pytest.raises(Deadlock):
            gpu.synchronize()


def waits_first(call: Call) -> None:
    """A call that launches its waiters before its GEMM, which one hardware queue never gets to."""
    launch = streams._launch
    late: list[Callable[[], object]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_launch", late.append)
        call()
    launch(late[0])


def mutated(patch: pytest.MonkeyPatch, mutant: str) -> None:
    """Plant one mistake in the order of launches."""
    wait_stream = Stream.wait_stream

    def deaf(name: str) -> Callable[[Stream, Stream], None]:
        def wait(self: Stream, other: Stream) -> None:
            if self.name != name:
                wait_stream(self, other)

        return wait

    match mutant:
        case "no fork":
            patch.setattr(Stream, "wait_stream", deaf("comm(-3)"))
        case "no join":
            patch.setattr(Stream, "wait_stream", deaf("compute"))
        case "nothing is warmed":
            patch.setattr(streams, "is_warm", lambda needed: True)
        case "counters are shared":
            zeroed = streams.Signals.zeroed
            kept: list[Any] = []

            def shared(*arguments: Any) -> Any:
                kept.append(zeroed(*arguments) if not kept else kept[0])
                return kept[0]

            patch.setattr(streams.Signals, "zeroed", shared)
        case "no wait":
            patch.setattr(streams, "hold", lambda *_: None)
            patch.setattr(streams.Signals, "wait", lambda *_: None)
        case "wait for the next band":
            address = streams.Signals.address
            patch.setattr(
                streams.Signals, "address", lambda self, g: address(self, (g + 1) % len(ROWS))
            )
        case "one tile too few":
            targets = Bands.targets
            patch.setattr(Bands, "targets", lambda *given: [t - 1 for t in targets(*given)])
        case "allocating collective":
            all_reduce = Call.all_reduce

            def allocating(self: Call, band: torch.Tensor) -> None:
                torch.empty(band.shape)
                all_reduce(self, band)

            patch.setattr(Call, "all_reduce", allocating)


def calls(seed: int, mutant: str) -> None:
    """Some calls, of which those that are warm have a mistake; the cold one if it is about it."""
    with device(seed=seed) as gpu, pytest.MonkeyPatch.context() as patch:
        call = Call(gpu, seed)
        if mutant != "nothing is warmed":
            call.use(call())
        mutated(patch, mutant)
        for _ in range(3):
            call.use(call())
        gpu.synchronize()


@pytest.mark.parametrize(
    ("mutant", "kind", "says"),
    [
        ("no fork", AssertionError, "before they are whole"),
        ("no join", AssertionError, "read too early|before they are whole"),
        ("nothing is warmed", Misuse, "memory is allocated"),
        ("counters are shared", AssertionError, "before they are whole"),
        ("no wait", AssertionError, "before they are whole"),
        ("wait for the next band", Deadlock, "nothing can begin"),
        ("one tile too few", AssertionError, "before they are whole"),
        ("allocating collective", Misuse, "memory is allocated"),
    ],
)
def test_a_mistake_in_the_order_is_found(mutant, kind, says):
    with pytest.raises(kind, match=says):
        any(calls(seed, mutant) for seed in range(40))


@pytest.mark.parametrize("mutant", ["no fork", "no join"])
def test_a_capture_finds_streams_that_are_not_in_it(mutant):
    with device() as gpu, pytest.MonkeyPatch.context() as patch:
        call = Call(gpu)
        call.use(call())
        gpu.synchronize()
        mutated(patch, mutant)
        graph = Graph(gpu)
        graph.capture_begin()
        with pytest.raises(Misuse, match="capture"):  # noqa: PT012 - one of the two finds it
            call()
            graph.capture_end()


def test_what_is_kept_is_of_no_mode_or_pool_of_its_caller():
    bands = Bands.of((2 * BLOCK, 3), BLOCK)
    with FakeTensorMode():
        table = GroupTables()(bands, torch.device("cpu"))
    assert table.tolist() == list(bands.table)


def test_a_waiter_before_its_gemm_hangs_on_one_queue():
    with device(one_queue=True) as gpu:
        call = Call(gpu)
        call.use(call())
        gpu.synchronize()
        waits_first(call)
        with pytest.raises(Deadlock):
            gpu.synchronize()
