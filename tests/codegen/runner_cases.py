"""Staged GEMMs on the CPU: kernels in the interpreter, streams that write down what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from overlapc.codegen import GemmSpec, build
from overlapc.codegen.oracle import error_over_bound, random_input, random_operand
from overlapc.errors import SignalError
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.signaled import signals, staged, streams

SMS = 6


class Stream:
    """A stream that logs the edges it is given."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@contextmanager
def logged_device(log: list[str], *, capturing: bool = False) -> Iterator[None]:
    """Let staged GEMMs believe in a GPU whose launches are logged and done at once."""
    compute = Stream("compute", log)
    current = [compute]

    class Cuda:
        class Stream(Stream):
            def __init__(self, device: Any, priority: int) -> None:
                super().__init__(f"comm({priority})", log)

            @staticmethod
            def priority_range() -> tuple[int, int]:
                return 0, -3

        @contextmanager
        def stream(self, stream: Any) -> Iterator[None]:
            current.append(stream)
            yield
            current.pop()

        def current_stream(self, device: Any = None) -> Any:
            return current[-1]

        def device(self, device: Any) -> Any:
            return nullcontext()

        def get_device_properties(self, device: Any) -> Any:
            return SimpleNamespace(multi_processor_count=SMS)

        def is_current_stream_capturing(self) -> bool:
            return capturing

    class Torch:
        cuda = Cuda()

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    wait = signals.Signals.wait

    def logged_wait(self: signals.Signals, group: int, max_polls: int = 0) -> None:
        log.append(f"{current[-1].name} awaits band {group}")
        # Whatever the runner forgot to launch before would make a real waiter spin for ever.
        wait(self, group, max_polls or 100)
        try:
            self.raise_if_given_up()
        except SignalError as error:  # the runner would go on without waiters
            log.append(str(error))

    replaced: list[tuple[Any, str, Any]] = [
        (streams, "torch", Torch()),
        (staged, "torch", Torch()),
        (signals.Signals, "wait", logged_wait),
        (streams, "_warm", set()),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    streams.communication_stream.cache_clear()
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        streams.communication_stream.cache_clear()


def all_reduced(
    kernel: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    rows: Sequence[int],
    all_reduce: Callable[[torch.Tensor], object],
    sms_for_comm: int,
    **operands: Any,
) -> torch.Tensor:
    """The staged GEMM of an all-reduce, whose bands are given to ``all_reduce``."""

    def start(group: Any, out: Any, sent: torch.Tensor, receives: Any, sends: Any) -> Any:
        all_reduce(sent)
        return SimpleNamespace(wait=lambda: None)

    sender: Any = SimpleNamespace(collective="all_reduce", reduce="sum", start=start)
    users: Any = None
    parts = producer_parts(Dealing("all_reduce", 0, sum(rows), 2, 0), rows)
    gemm = staged.StagedGemm.of(kernel, sender, parts, result_units=sum(rows))
    return gemm(a, b, users, sms_for_comm, **operands)


def run_twice(text: str, rows: tuple[int, ...], m: int, n: int, k: int) -> list[list[str]]:
    """The logs of a first and a second call; AssertionError unless both results are right.

    The all-reduce is that of two equal ranks, so a band reduced twice or not at all is seen.
    """
    logs: list[list[str]] = []

    def two_equal_ranks(band: torch.Tensor) -> None:
        log.append(f"all-reduce of {band.shape[0]} rows")
        assert band.is_contiguous()
        band.mul_(2)

    log: list[str] = []
    with logged_device(log):
        for _ in range(2):
            check(text, rows, m, n, k, log, two_equal_ranks)
            logs.append(list(log))
            log.clear()
    return logs


def check(
    text: str, rows: tuple[int, ...], m: int, n: int, k: int, log: list[str],
    all_reduce: Callable[[torch.Tensor], None], sms_for_comm: int = 2,
) -> None:  # fmt: skip
    """One call, its launch logged, its result compared."""
    spec = GemmSpec.parse(text)
    torch.manual_seed(m)
    a = random_operand(spec.a, m, k, spec.dtype, "cpu")
    b = random_operand(spec.b, k, n, spec.dtype, "cpu")
    inputs = [random_input(item, m, n, "cpu") for item in spec.chain.inputs]
    built = build(spec)

    class Logged:
        spec = built.spec
        tiles_n = staticmethod(built.tiles_n)

        def __call__(self, *arguments: Any, ctas: int, **named: Any) -> None:
            log.append(f"GEMM on {ctas}")
            built(*arguments, ctas=ctas, **named)

    kernel: Any = Logged()
    out = all_reduced(kernel, a, b, rows, all_reduce, sms_for_comm, inputs=inputs)
    assert error_over_bound(spec, a, b, None, out / 2, inputs) <= 1


def fail_in_the_middle(text: str) -> list[str]:
    """The log of a call whose second all-reduce raises."""
    log: list[str] = []

    def fails_second(band: torch.Tensor) -> None:
        if any(line.startswith("all-reduce") for line in log):
            raise ConnectionError("the peer is gone")
        log.append("all-reduce")

    with logged_device(log):
        try:
            check(text, (16, 16, 16), 48, 20, 16, log, fails_second)
        except ConnectionError as error:
            log.append(f"raised {error}")
    return log


def capture_cold(text: str) -> None:
    """A first call in a capture."""
    with logged_device([], capturing=True):
        check(text, (48,), 48, 20, 16, [], lambda band: None)


def leave_no_sm(text: str) -> None:
    """A call that leaves every SM to the collective."""
    with logged_device([]):
        check(text, (48,), 48, 20, 16, [], lambda band: None, sms_for_comm=SMS)


def wrong_rows(text: str) -> None:
    """A call whose bands are those of another row count."""
    with logged_device([]):
        check(text, (32,), 48, 20, 16, [], lambda band: None)
