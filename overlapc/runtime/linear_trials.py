"""Run a linear layer on random operands in each way that it may be computed, from cold caches."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx

from overlapc.planning.linear import LIBRARY, OURS, Gain, LinearTrial, Regions
from overlapc.planning.linear_tiles import FLAT, GEMV, MOST_SMS
from overlapc.planning.ratios import median_ratio, paired_ratios
from overlapc.runtime import linear
from overlapc.runtime.execution import fill, function, overload
from overlapc.runtime.linear_spec import LayerSpec
from overlapc.runtime.norming import GEMMS as ROWS_OF
from overlapc.runtime.norming import unnormed
from overlapc.runtime.ops import calls_of
from overlapc.runtime.parts import parts_of
from overlapc.runtime.program import ROWS, Program
from overlapc.runtime.widening import loaded

COLD_BYTES = 512 << 20
"""Of weights that are read in turn: several times the last cache of any device here."""
MOST_COPIES = 64
LEAST_CALLS = 16
"""Between two synchronisations, where a host launches each."""
FEWEST_ROUNDS, MOST_ROUNDS = 9, 41
"""Below six no 95 % interval exists; above, the interval hardly narrows. Chosen."""

ONLY = {GEMV: Regions(1, 1 << 20, 1 << 20), FLAT: Regions(1, 1, 1 << 20)}
"""Every row count in one way."""

Call = Callable[[Sequence[torch.Tensor]], Any]
Clock = Callable[[Call, Sequence[Sequence[torch.Tensor]]], Callable[[], float]]
"""Makes what gives the seconds of one call, of several on these operands in turn."""


class LinearTrials:
    """A layer with operands of its own, of which the weights differ from call to call."""

    def __init__(
        self,
        spec: LayerSpec,
        like: Sequence[torch.Tensor],
        device: torch.device,
        clock: Clock | None = None,
    ) -> None:
        """``like`` are tensors without content like the op's operands."""
        self.program, self.like, self.device = spec.program, list(like), device
        has_graphs = device.type == "cuda" and clock is None
        self.clock = clock or (on_device if has_graphs else on_host)
        self.launching = one_by_one if has_graphs else None

    def trial(self, rows: int, seconds: float, ways: Sequence[str] = OURS) -> LinearTrial:
        """Compare ways with the library at one row count, for about so many seconds."""
        runs = self._runs(rows, ways)
        share = seconds if self.launching is None else seconds / 2
        times = self._times(runs, rows, self.clock, share)
        library = sorted(times[LIBRARY])[len(times[LIBRARY]) // 2]
        launched = None
        if self.launching is not None:
            alone = {**runs, LIBRARY: products_of(self.program)}
            launched = tuple(_gains(self._times(alone, rows, self.launching, share)))
        return LinearTrial(rows, library, tuple(_gains(times)), launched)

    def _times(
        self, runs: Mapping[str, Call], rows: int, clock: Clock, seconds: float
    ) -> dict[str, list[float]]:
        """Seconds of a call of each run in every round."""
        operands = self._operands(rows)
        timers = {name: clock(run, operands) for name, run in runs.items()}
        once = {name: timer() for name, timer in timers.items()}  # warms up as well
        turn = len(operands) * sum(once.values())
        rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / turn) if turn else MOST_ROUNDS))
        times: dict[str, list[float]] = {name: [] for name in runs}
        order = random.Random(rows)
        for _ in range(rounds):
            for name in order.sample(list(runs), len(runs)):
                times[name].append(timers[name]())
        return times

    def _runs(self, rows: int, ways: Sequence[str]) -> dict[str, Call]:
        runs: dict[str, Call] = {LIBRARY: self._peer}
        operands = self._operands(rows)[0]
        for way in ways:
            spec = LayerSpec(self.program, ONLY[way], f"trial of {way}")
            calls, run = calls_of(spec.site), _by_op(spec.text(), self._counters)
            before = calls[way]
            run(operands)
            if calls[way] > before:
                runs[way] = run
        return runs

    @cached_property
    def _peer(self) -> Call:
        """What a graph runs that is left alone: the library, its pointwise work fused."""
        compute = function(self.program)
        if len(self.program.steps) == 1:
            return lambda operands: compute(operands, ())
        # Whole, or the comparison would not be with what Inductor makes of it.
        run = torch.compile(graph_of(self.program), dynamic=True, fullgraph=True)
        return lambda operands: run(*operands)

    def _operands(self, rows: int) -> list[list[torch.Tensor]]:
        """One list a call: the rows are the same, the weights are not."""
        shared = [
            None if index in self._weights else self._random(tensor, mode, rows)
            for index, (tensor, mode) in enumerate(zip(self.like, self.program.modes, strict=True))
        ]
        return [
            [mine if mine is not None else copy[index] for index, mine in enumerate(shared)]
            for copy in self._copies
        ]

    @cached_property
    def _counters(self) -> torch.Tensor | None:
        """As a graph has them, which makes them once for all its layers."""
        if self.device.type == "cpu":
            return None
        count = MOST_SMS + len(self.program.kept)
        return torch.zeros(count, dtype=torch.int32, device=self.device)

    @cached_property
    def _weights(self) -> tuple[int, ...]:
        return weights_of(self.program)

    @cached_property
    def _copies(self) -> list[dict[int, torch.Tensor]]:
        total = sum(self.like[index].nbytes for index in self._weights)
        count = max(2, min(MOST_COPIES, math.ceil(COLD_BYTES / max(1, total))))
        return [
            {index: self._random(self.like[index], "", 0) for index in self._weights}
            for _ in range(count)
        ]

    def _random(self, like: torch.Tensor, mode: str, rows: int) -> torch.Tensor:
        if mode == ROWS:
            shape = (rows, *like.shape[1:])
            return torch.randn(shape, device=self.device).to(like.dtype)
        made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=self.device)
        scale = 1 if like.dtype.is_floating_point else 32
        return made.copy_(scale * torch.randn(like.shape, device=self.device))


def _by_op(text: str, counters: torch.Tensor | None) -> Call:
    """As generated code calls it: what that costs the host counts."""
    return lambda operands: linear.run(list(operands), text, counters)


def graph_of(program: Program) -> fx.GraphModule:
    """Return a program as a graph of its own, which torch can compile."""
    graph = fx.Graph()
    operands = [graph.placeholder(f"o{index}") for index in range(len(program.modes))]
    values: list[fx.Node] = []
    for step in program.steps:
        args = tuple(fill(arg, operands, values) for arg in step.args)
        named = {name: fill(arg, operands, values) for name, arg in step.kwargs}
        values.append(graph.call_function(overload(step.op), args, named))
    results = [values[result.index] for result in program.results]
    graph.output(tuple(results) if len(results) > 1 else results[0])
    return fx.GraphModule(torch.nn.Module(), graph)


def weights_of(program: Program) -> tuple[int, ...]:
    """Which operands of a program are the right operands of its GEMMs."""
    places = {"aten.mm.default": 1, "aten.addmm.default": 2}
    steps = [step for part in parts_of(program) for step in loaded(unnormed(part)[0]).program.steps]
    found = [step.args[places[step.op]] for step in steps if step.op in places]
    return tuple(dict.fromkeys(ref.index for ref in found))


def products_of(program: Program) -> Call:
    """The GEMMs of a program alone, and casts of narrow weights: what a library has to do at least,
    whatever is fused around them; a compiled graph called for each layer costs a host more than a
    model's does."""
    (part, *_) = parts_of(program)
    step = next(s for s in loaded(unnormed(part)[0]).program.steps if s.op in ROWS_OF)
    left, weights = step.args[ROWS_OF[step.op]].index, weights_of(program)

    def run(operands: Sequence[torch.Tensor]) -> None:
        x = operands[left]
        for index in weights:
            w = operands[index].to(x.dtype)
            torch.mm(x, w if len(w) == x.shape[1] else w.t())

    return run


def _gains(times: Mapping[str, Sequence[float]]) -> list[Gain]:
    found = []
    for way in OURS:
        if way in times:
            ratio = median_ratio(paired_ratios(times[LIBRARY], times[way]))
            if ratio.low > 0:
                found.append(Gain(way, ratio.low, ratio.median, ratio.high))
    return found


def on_host(run: Call, operands: Sequence[Sequence[torch.Tensor]]) -> Callable[[], float]:
    """Seconds of a call on a processor: every list of operands once."""

    def seconds() -> float:
        start = time.perf_counter()
        for given in operands:
            run(given)
        return (time.perf_counter() - start) / len(operands)

    return seconds


def one_by_one(run: Call, operands: Sequence[Sequence[torch.Tensor]]) -> Callable[[], float]:
    """Seconds of a call where a host launches each: the longer of what it and the device take."""
    turns = max(1, LEAST_CALLS // len(operands))

    def seconds() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(turns):
            for given in operands:
                run(given)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / (turns * len(operands))

    return seconds


def on_device(run: Call, operands: Sequence[Sequence[torch.Tensor]]) -> Callable[[], float]:
    """Device seconds of a call in a CUDA graph of one call on every list of operands.

    It is captured once: every capture empties torch's cache of device memory, and costs the host
    more than a replay takes.
    """
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # which fills the operands
    with torch.cuda.stream(side):
        run(operands[0])
    side.synchronize()
    with torch.cuda.graph(graph):
        for given in operands:
            run(given)

    def seconds() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / len(operands)

    return seconds
