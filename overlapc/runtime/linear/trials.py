"""Run a linear layer on random operands in each way that it may be computed, from cold caches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import fx

from overlapc.planning.linear.regions import LIBRARY, OURS, Gain, LinearTrial, Regions
from overlapc.planning.linear.tiles import FLAT, GEMV, MOST_SMS
from overlapc.planning.ratios import median_ratio, paired_ratios
from overlapc.runtime.linear import op as linear
from overlapc.runtime.linear.norming import GEMMS as ROWS_OF
from overlapc.runtime.linear.norming import unnormed
from overlapc.runtime.linear.parts import parts_of
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.linear.widening import loaded
from overlapc.runtime.measuring.clocks import (
    COLD_BYTES,
    MOST_COPIES,
    Call,
    Clock,
    on_device,
    on_host,
    one_by_one,
    seconds_of,
)
from overlapc.runtime.ops import calls_of
from overlapc.runtime.programs.execution import fill, function, overload
from overlapc.runtime.programs.program import ROWS, Program

ONLY = {GEMV: Regions(1, 1 << 20, 1 << 20), FLAT: Regions(1, 1, 1 << 20)}
"""Every row count in one way."""
BY_OP = "by the op"
"""The library, called as the op calls it."""


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
        operands = self._operands(rows)
        if self.device.type == "cpu":
            # The kernel of a graph without the op is its one call: what the op adds may be felt.
            spec = LayerSpec(self.program, Regions(), f"trial of {LIBRARY}")
            runs[BY_OP] = _by_op(spec.text(), None)
        times = seconds_of(runs, operands, self.clock, share, rows)
        library = sorted(times[LIBRARY])[len(times[LIBRARY]) // 2]
        launched = None
        if self.launching is not None:
            alone = {**runs, LIBRARY: products_of(self.program)}
            launched = tuple(_gains(seconds_of(alone, operands, self.launching, share, rows)))
        by_op = _gain(LIBRARY, times, BY_OP)
        return LinearTrial(rows, library, tuple(_gains(times)), launched, by_op)

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
    results = [fill(result, operands, values) for result in program.results]
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
    found = (_gain(way, times, way) for way in OURS)
    return [gain for gain in found if gain is not None]


def _gain(implementation: str, times: Mapping[str, Sequence[float]], run: str) -> Gain | None:
    """Of a run over the library; None where it did not run, or too few rounds were timed."""
    if run not in times:
        return None
    ratio = median_ratio(paired_ratios(times[LIBRARY], times[run]))
    return Gain(implementation, ratio.low, ratio.median, ratio.high) if ratio.low > 0 else None
