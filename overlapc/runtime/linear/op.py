"""The op that stands in a compiled graph in place of a linear layer: it chooses by the row count.

It is self-contained: its tensors and one specification say everything, for on a warm cache no pass
of ours has run in the process that calls it. A new row count compiles nothing but a kernel of
another tile, and what cannot be computed as planned is computed by the library, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from overlapc.codegen.kernel import special
from overlapc.errors import KernelError
from overlapc.planning.linear.regions import LIBRARY
from overlapc.planning.linear.tiles import rows_of_tile
from overlapc.runtime import machine
from overlapc.runtime.linear.kernels import Run, Start, by_kernel, linear_kernel_spec
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.linear.ways import on_processor
from overlapc.runtime.ops import by_library_of, calls_of
from overlapc.runtime.programs import fusing
from overlapc.runtime.programs.execution import BINDINGS, function, overload
from overlapc.runtime.programs.program import ROWS, Program

NAME, NAME_OF_SEVERAL, COUNTERS = "linear", "linears", "linear_counters"
SCHEMA = "(Tensor[] operands, str spec, Tensor? counters=None, int first=0) -> Tensor"
"""``operands`` are those of the spec's program; the result is its one value, contiguous. The op of
several gives a list of them. ``counters`` are int32 zeros, and stay zeros, of which nothing else on
the device has those from ``first`` on while the op runs, as many as ``most_counters`` says."""

Tensors = Sequence[torch.Tensor]
Caller = Callable[[Tensors, torch.Tensor | None, int], Any]
"""From operands, and counters from an element on, to the result or the list of several."""

MOST_KNOWN = 256
"""Ways in which operands of a layer lay that are kept; chosen: 64 row counts of a few layouts."""
NOT_LOADED = "It had not run before a graph was captured, and in a capture nothing is loaded."

_library = torch.library.Library("overlapc", "FRAGMENT")


@dataclass
class Layer:
    """A specification as something to call: how each number of rows was computed before."""

    spec: LayerSpec
    calls: Counter[str]
    """Calls of the site by implementation."""
    by_library: Counter[str]
    """Calls that the library computed in place of another implementation, by the reason."""
    ready: dict[tuple[object, ...], Start | str] = field(default_factory=dict)
    """By way, rows of its tile, and how the operands lie: what runs, or why nothing does."""
    known: dict[object, Run] = field(default_factory=dict)
    """What ran of operands that lay just so: to find it again takes a microsecond."""

    def __post_init__(self) -> None:
        self.rows_of = self.spec.program.modes.index(ROWS)
        self.library = _library_of(self.spec.program, self.spec.inductor)

    def caller(self) -> Caller:
        """What computes the result, or the list of several.

        One function and what it closes over: beside weights that pass through the caches all that
        a call touches comes from memory, and costs a layer of the library's a per cent or two.
        """
        regions, rows_of, ours = self.spec.regions, self.rows_of, self._ours
        low, end = regions.gemv_from, regions.library_from
        calls, library = self.calls, self.library

        def call(operands: Tensors, counters: torch.Tensor | None, first: int) -> Any:
            if low <= operands[rows_of].shape[0] < end:
                return ours(operands, counters, first)
            calls[LIBRARY] += 1
            return library(operands)

        return call

    def _ours(self, operands: Tensors, counters: torch.Tensor | None, first: int) -> Any:
        """The result by the way that the regions say, or else by the library."""
        x = operands[self.rows_of]
        rows = x.shape[0]
        way = self.spec.regions.implementation(rows)
        # A processor's ways take any layout; of an address Triton asks what it is modulo 16.
        lying = way if x.is_cpu and way in self.known else _lying(x, operands)
        run = self.known.get(lying)
        if run is None:
            found = self._by(way, rows, operands, counters, first, lying)
        else:
            found = self._run(run, operands, counters, first)
        if not isinstance(found, str):
            self.calls[way] += 1
            return found
        self.by_library[found] += 1
        self.calls[LIBRARY] += 1
        return self.library(operands)

    def _run(self, run: Run, operands: Tensors, counters: torch.Tensor | None, first: int) -> Any:
        try:
            return run(operands, counters, first)
        except KernelError as error:
            self.known.clear()
            return error.what

    def _by(
        self, way: str, rows: int, operands: Tensors, counters: torch.Tensor | None, first: int,
        lying: object,
    ) -> Any:  # fmt: skip
        """The result in that way, or why there is none."""
        key = (way, rows_of_tile(way, rows), *map(_laid, operands, self.spec.program.modes))
        start = self.ready.get(key)
        if isinstance(start, str):
            return start
        try:
            if start is None:
                if _is_capturing(operands[self.rows_of].device):
                    return NOT_LOADED
                start = self.ready[key] = self._made(way, rows, operands)
            result, run = start(operands, counters, first)
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            self.known[lying] = run
            return result
        except KernelError as error:
            self.ready[key] = error.what
            return error.what

    def _made(self, way: str, rows: int, operands: Tensors) -> Start:
        device = operands[self.rows_of].device
        architecture = machine.architecture_of(device)
        if device.type == "cpu" and not architecture:
            compute = on_processor(self.spec.program, way)

            def run(operands: Tensors, counters: torch.Tensor | None, first: int) -> Any:
                return compute(operands)

            self.known[way] = run
            return lambda *given: (run(*given), run)
        sms = machine.multiprocessors(device)
        chosen = linear_kernel_spec(
            self.spec.program, operands, way, rows, architecture=architecture, sms=sms
        )
        return by_kernel(*chosen)


def _lying(x: torch.Tensor, operands: Tensors) -> object:
    """Equal for calls that one run computes; unlike ``_laid`` quick to make, and often unequal for
    calls that one run computes too."""
    return (x.device, *[(o.shape, o.stride(), o.data_ptr() & 15, o.dtype) for o in operands])


def _laid(operand: torch.Tensor, mode: str) -> tuple[object, ...]:
    """What of an operand a kernel depends on: of rows not how many, but what is compiled for."""
    first = 1 if mode == ROWS else 0
    size, stride = operand.shape[first:], operand.stride()[first:]
    numbers = (*operand.shape[:first], *operand.stride()[:first], operand.data_ptr())
    return operand.dtype, operand.device, size, stride, special(numbers)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=1024)
def _library_of(program: Program, settings: str) -> Callable[[Tensors], Any]:
    """What computes a program by the library's calls, with contiguous results."""
    (step, *others), (kept, *more) = program.steps, program.kept
    binding = BINDINGS.get(overload(step.op))
    if binding and not (others or step.kwargs or more or kept.is_operand):
        # As short as it can be: it may be all that a layer does.
        match [getattr(arg, "index", None) for arg in step.args]:
            case [int(a), int(b)]:
                return lambda operands: binding(operands[a], operands[b])
            case [int(c), int(a), int(b)]:
                return lambda operands: binding(operands[c], operands[a], operands[b])
    steps, fused = function(program), fusing.function(program, settings=settings)

    def compute(operands: Tensors) -> tuple[torch.Tensor, ...]:
        # As Inductor would fuse them where rows vary; of processors none are taken then.
        return (steps if operands[0].is_cpu else fused)(operands, ())

    if more:
        return lambda operands: [one.contiguous() for one in compute(operands)]
    if not kept.is_operand and overload(program.steps[kept.index].op) in BINDINGS:
        return lambda operands: compute(operands)[0]  # a GEMM's is contiguous
    return lambda operands: compute(operands)[0].contiguous()


_callers: dict[str, Caller] = {}


def run(operands: Tensors, spec: str, counters: torch.Tensor | None = None, first: int = 0) -> Any:
    """Compute what the op of these arguments gives."""
    call = _callers.get(spec)
    if call is None:
        parsed = LayerSpec.parse(spec)
        layer = Layer(parsed, calls_of(parsed.site), by_library_of(parsed.site))
        call = _callers[spec] = layer.caller()
    return call(operands, counters, first)


def _fake(
    operands: list[torch.Tensor], spec: str, counters: torch.Tensor | None = None, first: int = 0
) -> Any:
    values = function(LayerSpec.parse(spec).program)(operands, ())
    made = [operands[0].new_empty(value.shape, dtype=value.dtype) for value in values]
    return made if len(made) > 1 else made[0]


for _name, _schema in ((NAME, SCHEMA), (NAME_OF_SEVERAL, f"{SCHEMA}[]")):
    # Inductor may not change the order of strides: a weight is most often a transposed view.
    _library.define(f"{_name}{_schema}", tags=(torch.Tag.needs_fixed_stride_order,))
    _library.impl(_name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"overlapc::{_name}", _fake, lib=_library)


def _zeros(count: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)


_library.define(f"{COUNTERS}(int count, Device device) -> Tensor")
_library.impl(COUNTERS, _zeros, "CompositeExplicitAutograd")
torch.library.register_fake(f"overlapc::{COUNTERS}", _zeros, lib=_library)

OP, SEVERAL = torch.ops.overlapc.linear.default, torch.ops.overlapc.linears.default
