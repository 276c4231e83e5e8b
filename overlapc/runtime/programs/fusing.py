"""A program whose steps between GEMMs are kernels that Inductor makes, for any number of rows.

They are compiled at the first call, for on a warm cache no pass runs; Inductor's own cache on disk
makes that quick in the next process. What cannot be compiled runs step by step, which is said.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from torch._dynamo.convert_frame import compile_lock

from overlapc.runtime.programs import execution
from overlapc.runtime.programs.compiling import Compilation, Sizes, row_strides
from overlapc.runtime.programs.execution import Function
from overlapc.runtime.programs.program import ROWS, Program, Ref
from overlapc.runtime.programs.runs import parts_of
from overlapc.runtime.programs.settings import under
from overlapc.runtime.shapes import on_meta

log = logging.getLogger(__name__)

LEAST_ELEMENTS = 1024
"""Of a program's largest value but for GEMMs', for its runs to be compiled: fewer take a few
microseconds step by step, and compiling takes seconds. Chosen."""
MOST_LAYOUTS = 8
"""Ways in which a program's operands lay that are compiled, as many as Dynamo compiles a frame."""
LIKELY_ROWS = 2048
"""Chosen: for so many rows Inductor deals out loops to threads, or blocks. Not those of the first
call, for another rank would compile another kernel."""
CAPTURING = "It had not run before a graph was captured, and in a capture nothing is compiled."
TOO_MANY = f"Operands lay in more than {MOST_LAYOUTS} ways."

Key = tuple[Any, ...]
"""How tensors lie: the device, and of each operand and written one its strides and what else
counts."""

_compiling = threading.RLock()
_making = threading.Lock()
_reasons: dict[tuple[Program, str], str] = {}


def why_in_steps(program: Program, settings: str = "") -> str:
    """Return why steps that could be one kernel ran one by one; empty where none did so."""
    return _reasons.get((program, settings), "")


def function(
    program: Program,
    written: tuple[Ref, ...] = (),
    cut: tuple[bool, ...] = (),
    settings: str = "",
) -> Function:
    """Return the code of a program as `execution.function` does, with runs of steps fused.

    Calls may differ in rows. ``cut``: of which operands the last dimension may differ too, as it
    does in all values that are written then. ``settings``: as `settings.settings` says.
    """
    with _making:  # two threads that ask at once have one, and so compile once
        return _function(program, written, cut, settings)


def of_one_shape(run: Function) -> Function:
    """Return the same for calls whose tensors have equal shapes and dtypes at each: what runs is
    found again by how they lie, in a fifth of the time."""
    if not isinstance(run, Fusing):
        return run
    known: dict[Key, Function] = {}

    def call(
        operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        if torch._C._is_any_autocast_enabled():
            return run(operands, places)
        lying = operands[0].device, *[t.stride() for t in (*operands, *places)]
        found = known.get(lying)
        if found is not None:
            return found(operands, places)
        results = run(operands, places)
        if len(known) < MOST_LAYOUTS and (settled := run.settled(operands, places)):
            known[lying] = settled
        return results

    return call


@lru_cache(maxsize=1024)
def _function(
    program: Program, written: tuple[Ref, ...], cut: tuple[bool, ...], settings: str
) -> Function:
    steps = execution.function(program, written)
    if ROWS not in program.modes or all(len(run.steps) == 1 for run in parts_of(program)):
        return steps
    return Fusing(program, written, cut, steps, settings)


@dataclass
class Layout:
    """Operands and written tensors that lie in one way, for any sizes."""

    elements: float
    """Of the largest value that a run computes, for each row, or row and column."""
    compilation: Compilation | None = None
    made: Function | None = None
    """What was compiled."""
    run: Function | None = None
    """The same once it has run, or what runs in its place."""
    allowed: dict[Sizes, bool] = field(default_factory=dict)

    def serves(self, sizes: Sizes) -> bool:
        """Whether what was compiled may run for these sizes."""
        if self.compilation is None or not self.compilation.env.guards:
            return True
        if sizes not in self.allowed:
            self.allowed[sizes] = self.compilation.holds(sizes)
        return self.allowed[sizes]


@dataclass
class Fusing:
    """A program and what was compiled of it so far."""

    program: Program
    written: tuple[Ref, ...]
    cut: tuple[bool, ...]
    steps: Function
    """What computes it step by step."""
    settings: str = ""
    layouts: dict[Key, Layout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows_of = self.program.modes.index(ROWS)
        self._first = [int(mode == ROWS) for mode in self.program.modes]
        cut = self.cut or (False,) * len(self._first)
        self._last = [-1 if is_cut else None for is_cut in cut]
        self._strides = row_strides if self.cut else torch.Tensor.stride

    def __call__(
        self, operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """As a function of `execution.function`."""
        if torch._C._is_any_autocast_enabled():  # GEMMs may give other dtypes
            return self.steps(operands, places)
        layout = self._layout(operands, places)
        run = self._settled(layout, operands)
        return run(operands, places) if run else self._first_run(layout, operands, places)

    def settled(
        self, operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
    ) -> Function | None:
        """What computes tensors of these sizes that lie so from now on; None where that has not
        run."""
        return self._settled(self._layout(operands, places), operands)

    def _layout(self, operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> Layout:
        key = self._lying(operands, places)
        return self.layouts.get(key) or self._new(key, operands, self._sizes(operands))

    def _settled(self, layout: Layout, operands: Sequence[torch.Tensor]) -> Function | None:
        sizes = self._sizes(operands)
        if prod(sizes) * layout.elements < LEAST_ELEMENTS or not layout.serves(sizes):
            return self.steps
        return layout.run

    def _first_run(
        self, layout: Layout, operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        if _is_capturing(operands[0].device):
            self._reason(CAPTURING)
            return self.steps(operands, places)
        # Dynamo's lock first: who compiles holds it, and may call us.
        with compile_lock, _compiling:
            if layout.run is None:
                return self._tried(layout, operands, places)
        return self(operands, places)

    def _tried(
        self, layout: Layout, operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compile, and run what came of it; step by step where either fails, for peers send on.

        It is kept when it has run: at its first launch a kernel is loaded, and may be tuned, which
        must not happen in a capture of another thread.
        """
        sizes = self._sizes(operands)
        try:
            _drain(operands[0].device)
            if layout.made is None:
                hints = (LIKELY_ROWS, *(max(2, columns) for columns in sizes[1:]))
                compilation = Compilation(self.program, self.written, self.cut, hints)
                make = partial(compilation.function, operands, places)
                layout.made, layout.compilation = under(self.settings, make), compilation
            if not layout.serves(sizes):
                return self.steps(operands, places)
            results = layout.made(operands, places)
        except Exception as error:
            self._fails(error)
            layout.compilation, layout.run = None, self.steps
            return self.steps(operands, places)
        assert layout.compilation is not None
        layout.run = layout.compilation.after_first_run()
        return results

    def _sizes(self, operands: Sequence[torch.Tensor]) -> Sizes:
        rows = operands[self._rows_of].shape[0]
        if not any(self.cut):
            return (rows,)
        return rows, operands[self.cut.index(True)].shape[-1]

    def _lying(self, operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> Key:
        """Equal for calls that one compilation serves."""
        return (
            operands[0].device,
            *[
                (self._strides(t), t.dtype, t.shape[first:last])
                for t, first, last in zip(operands, self._first, self._last, strict=True)
            ],
            *[(self._strides(t),) for t in places],
        )

    def _without_rows(self, key: Key) -> Key:
        """The key without strides of rows: where there is one, views may give it any."""
        first = (*self._first, *[1] * len(self.written))
        device, *tensors = key
        given = zip(first, tensors, strict=True)
        rests = [(strides or (0, 1))[at:] for at, (strides, *_) in given]
        return (device, *[(rest, *more) for rest, (_, *more) in zip(rests, tensors, strict=True)])

    def _new(self, key: Key, operands: Sequence[torch.Tensor], sizes: Sizes) -> Layout:
        if sizes[0] == 1:
            rest = self._without_rows(key)
            for other, layout in list(self.layouts.items()):
                if self._without_rows(other) == rest:
                    return layout
        if len(self.layouts) >= MOST_LAYOUTS:
            self._reason(TOO_MANY)
            return Layout(0)
        if not prod(sizes):
            return Layout(0)
        try:
            layout = Layout(self._largest(operands) / prod(sizes))
        except Exception as error:  # a GEMM whose sizes cannot be told without content
            self._fails(error)
            layout = Layout(0)
        return self.layouts.setdefault(key, layout)  # of two threads at once the first one's

    def _largest(self, operands: Sequence[torch.Tensor]) -> int:
        """Elements of the largest value that a run computes."""
        given = [on_meta(operand) for operand in operands]
        values = execution.trace(self.program, given, lambda _, op, args, more: op(*args, **more))
        runs = [run for run in parts_of(self.program) if len(run.steps) > 1]
        return max(values[index].numel() for run in runs for index in run.steps)

    def _reason(self, why: str) -> None:
        _reasons[self.program, self.settings] = why

    def _fails(self, error: Exception) -> None:
        self._reason(f"No kernel of Inductor computes them: {error!r}")
        log.warning("pointwise steps run one by one: %r", error, exc_info=True)


def _drain(device: torch.device) -> None:
    """Wait until nothing is in flight on a device: kernels are tuned, and loaded, beside no
    collective and behind no waiter.

    It ends: what was enqueued waits for no later call of this host. A waiter's GEMM was launched
    before it, and its peers send in the same order.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _is_capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # whose current stream is asked
        return torch.cuda.is_current_stream_capturing()
