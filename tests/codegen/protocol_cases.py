"""The GEMM that signals and the stream that waits, in two processes on one mapped file.

Each is a process of Triton's interpreter. What CUDA orders is a word in the file: the fork, behind
which the second stream may look at counters, and the join, behind which the first goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from triton.runtime.interpreter import GridExecutor

from overlapc.codegen import COUNTER_STRIDE, Kernel, build
from overlapc.codegen.builder import TEMPLATES, load
from overlapc.codegen.oracle import random_operand
from overlapc.codegen.packing import unpack
from overlapc.codegen.templates import signal
from overlapc.runtime.signaled.signals import Signals
from overlapc.runtime.signaled.staged import StagedGemm
from overlapc.runtime.signaled.staged_sending import staged_collectives
from tests.codegen.gemm_cases import mutant, shuffled_programs
from tests.codegen.protocol_groups import CASES, SWEEP, Case, K, N, of_all_ranks
from tests.codegen.weak_memory import counted_polls, until, weak_stores

LAUNCHES = 2
"""On one memory, as those of a captured graph are."""
ENDED = LAUNCHES + 1
"""In place of a launch: the consumer does nothing more."""
CTAS = 4


class Shared:
    """The memory of a case that both processes see; the files begin as zeros."""

    def __init__(self, path: str, case: Case, sender: Any = None) -> None:
        self.gemm: StagedGemm = case.gemm(sender or SimpleNamespace(collective=case.collective))
        rows, width = self.gemm.units[0], self.gemm._width(N)
        tiles_n = -(-N // case.spec.block_n)
        its = self.gemm.bands
        targets = its.targets if case.spec.order == "packed" else its.targets(tiles_n)
        self.c = _mapped(path, "c", (rows, width), getattr(torch, case.spec.out))
        counters = _mapped(path, "counters", (len(targets) + 1, COUNTER_STRIDE), torch.int32)
        self.signals = Signals(counters, torch.tensor(its.table, dtype=torch.int32), targets)
        self.words = _mapped(path, "words", (3,), torch.int64)

    forked = property(lambda self: int(self.words[0]))
    joined = property(lambda self: int(self.words[1]))
    polls = property(lambda self: int(self.words[2]))

    def fork(self, launch: int) -> None:
        """Let the second stream begin."""
        self.words[0] = launch

    def join(self, launch: int) -> None:
        """Let the first stream go on."""
        self.words[1] = launch

    def polled(self) -> None:
        """A counter is about to be read."""
        self.words[2] += 1

    def await_polls(self, count: int, launch: int) -> None:
        """Until the other process has read counters so often, or has nothing more to read."""
        before = self.polls
        until(lambda: self.polls >= before + count or self.joined >= launch)


def _mapped(path: str, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.from_file(f"{path}/{name}", shared=True, size=size, dtype=dtype).view(shape)


@contextmanager
def arguments_in_place() -> Iterator[None]:
    """Keep the interpreter from copying arguments back: that would undo another process's adds."""
    executor: Any = GridExecutor
    with mock.patch.object(executor, "_restore_args_dev"):
        yield


def operands(case: Case, launch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of a launch."""
    torch.manual_seed(100 * seed + launch)
    spec = case.spec
    return (
        random_operand(spec.a, case.units, K, spec.dtype, "cpu"),
        random_operand(spec.b, K, N, spec.dtype, "cpu"),
    )


def produce(path: str, name: str, seed: int, mistake: Any = None) -> None:
    """Launch the GEMM again and again, each time on poisoned memory.

    ``mistake``: a text of the templates and what to put in its place, or what ``consume`` says. The
    GEMM runs at a pace at which a waiter that may go on does so before the next tile is stored.
    """
    case = CASES[name]
    kernel, shared = build(case.spec), Shared(path, case)
    if isinstance(mistake, tuple):
        kernel = mutant(kernel, mistake)
    for launch in range(1, LAUNCHES + 1):
        given = operands(case, launch, seed)
        shared.c.fill_(torch.nan)
        if mistake != "not reset" or launch == 1:
            shared.signals.storage.zero_()
        if mistake == "tuned":  # a first launch, behind which the other stream waits as a whole
            for _ in range(2):
                _launch(kernel, shared, given, random.Random(seed), lambda: None)
            shared.fork(launch)
        else:
            shared.fork(launch)
            # The waiter spins before the GEMM is launched.
            shared.await_polls(3, launch)
            two = lambda at=launch: shared.await_polls(2, at)  # noqa: E731 - the first may be old
            _launch(kernel, shared, given, random.Random(seed), two)
        until(lambda at=launch: shared.joined >= at)
        if shared.joined == ENDED:
            return


def _launch(
    kernel: Kernel, shared: Shared, given: tuple[torch.Tensor, ...], generator: random.Random,
    after_add: Callable[[], object],
) -> None:  # fmt: skip
    c = shared.c.view(-1) if kernel.spec.order == "packed" else shared.c
    signals = shared.signals
    with shuffled_programs(generator), weak_stores(generator, after_add), arguments_in_place():
        kernel(*given, c, ctas=CTAS, sweep=SWEEP, bands=signals.bands, counters=signals.counters)


def consume(path: str, name: str, seed: int, mistake: Any = None, most: int = 1_000_000) -> None:
    """Send every group as its waiter lets it go; AssertionError for a result that is not PyTorch's,
    and for a waiter that has read a counter ``most`` times.

    ``mistake``: a text of the waiter and what to put in its place, or in which way targets are
    wrong.
    """
    case = CASES[name]

    def start(group: Any, out: torch.Tensor, sent: torch.Tensor, *_: Any) -> Any:
        # Other ranks' parts too; packed tiles hold what is outside C.
        is_early = case.spec.order == "band" and bool(sent.isnan().any())
        assert not is_early, f"launch {shared.forked} was read too early"
        whole = of_all_ranks(case.collective, sent)
        (sent if case.collective == "all_reduce" else out).copy_(whole)
        return SimpleNamespace(wait=lambda: None)

    sender = SimpleNamespace(collective=case.collective, start=start)
    shared = Shared(path, case, sender)
    signals = _mistaken(shared.signals, mistake)
    try:
        with _waiter(mistake), counted_polls(shared.polled, most), arguments_in_place():
            for launch in range(1, LAUNCHES + 1):
                until(lambda at=launch: shared.forked >= at)
                result = _sent(case, shared, signals, sender)
                a, b = operands(case, launch, seed)
                wanted = case.wanted(a.double() @ b.double())
                torch.testing.assert_close(
                    result.double(), wanted, rtol=1e-5, atol=1e-4,
                    msg=lambda text, at=launch: f"launch {at} was read too early: {text}",
                )  # fmt: skip
                shared.join(launch)
    finally:
        shared.join(ENDED)


def _sent(case: Case, shared: Shared, signals: Signals, sender: Any) -> torch.Tensor:
    """What the collectives give."""
    gemm, group = shared.gemm, None
    result = shared.c
    if case.collective != "all_reduce":
        result = shared.c.new_full((gemm.units[1], N // gemm.across), torch.nan)
    its: Any = group
    calls = staged_collectives(gemm.parts, shared.c, result, sender, its, gemm.across)
    assert len(calls) == len(signals.targets)
    for index, call in enumerate(calls):
        signals.wait(index)
        call()
    return unpack(result.view(-1), gemm.bands.order) if case.spec.order == "packed" else result


def _mistaken(signals: Signals, mistake: Any) -> Signals:
    targets = signals.targets
    match mistake:
        case "one tile too few":
            targets = [target - 1 for target in targets]
        case "one tile too many":
            targets = [target + 1 for target in targets]
        case "another group's":
            targets = [*targets[1:], targets[0]]
    return Signals(signals.storage, signals.bands, targets)


@contextmanager
def _waiter(mistake: Any) -> Iterator[None]:
    """Wait by a mutant of the kernel."""
    if not isinstance(mistake, tuple):
        yield
        return
    old, new = mistake
    text = (TEMPLATES / "signal.py").read_text()
    assert text.count(old) == 1
    path = build(CASES["bands"].spec).path.with_name(f"waiter_{abs(hash(mistake))}.py")
    path.write_text(text.replace(old, new))
    with mock.patch.object(signal, "wait_for_group", load(path).wait_for_group):
        yield


def give_up(path: str, name: str, max_polls: int) -> None:
    """Wait for the first group so long; SignalError that names it."""
    signals = Shared(path, CASES[name]).signals
    with arguments_in_place():
        signals.wait(0, max_polls)
        signals.raise_if_given_up()
