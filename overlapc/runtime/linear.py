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
from overlapc.planning.linear import LIBRARY
from overlapc.planning.linear_tiles import rows_of_tile
from overlapc.runtime import machine
from overlapc.runtime.execution import BINDINGS, function, overload
from overlapc.runtime.linear_kernels import by_kernel, linear_kernel_spec
from overlapc.runtime.linear_spec import LayerSpec
from overlapc.runtime.linear_ways import on_processor
from overlapc.runtime.ops import by_library_of, calls_of
from overlapc.runtime.program import ROWS, Program

NAME, NAME_OF_SEVERAL = "linear", "linears"
SCHEMA = "(Tensor[] operands, str spec) -> Tensor"
"""``operands`` are those of the spec's program; the result is its one value, contiguous. The op of
several gives a list of them."""

Run = Callable[[Sequence[torch.Tensor]], Any]

MOST_KNOWN = 256
"""Ways in which operands of a layer lay that are kept; chosen: 64 row counts of a few layouts."""
NOT_LOADED = "It had not run before a graph was captured, and in a capture nothing is loaded."

_library = torch.library.Library("overlapc", "FRAGMENT")


@dataclass
class Layer:
    """A specification as something to call: how each number of rows was computed before."""

    spec: LayerSpec
    calls: Counter[str]
    """Of the site, by implementation."""
    by_library: Counter[str]
    """Those that the library computed in place of another implementation, by the reason."""
    ready: dict[tuple[object, ...], Run | str] = field(default_factory=dict)
    """By way, rows of its tile, and how the operands lie: what runs, or why nothing does."""
    known: dict[object, Run] = field(default_factory=dict)
    """What ran of operands that lay just so: to find it again takes a microsecond."""

    def __post_init__(self) -> None:
        self.rows_of = self.spec.program.modes.index(ROWS)
        self.library = _library_of(self.spec.program)

    def __call__(self, operands: Sequence[torch.Tensor]) -> Any:
        """Compute the result, or the list of several."""
        x = operands[self.rows_of]
        rows = x.shape[0]
        way = self.spec.regions.implementation(rows)
        if way != LIBRARY:
            # A processor's ways take any layout; of an address Triton asks what it is modulo 16.
            lying = way if x.is_cpu and way in self.known else _lying(x, operands)
            run = self.known.get(lying)
            found = (
                self._by(way, rows, operands, lying) if run is None else self._run(run, operands)
            )
            if not isinstance(found, str):
                self.calls[way] += 1
                return found
            self.by_library[found] += 1
        self.calls[LIBRARY] += 1
        return self.library(operands)

    def _run(self, run: Run, operands: Sequence[torch.Tensor]) -> Any:
        try:
            return run(operands)
        except KernelError as error:
            self.known.clear()
            return error.what

    def _by(self, way: str, rows: int, operands: Sequence[torch.Tensor], lying: object) -> Any:
        """The result in that way, or why there is none."""
        key = (way, rows_of_tile(way, rows), *map(_laid, operands, self.spec.program.modes))
        found = self.ready.get(key)
        if isinstance(found, str):
            return found
        try:
            if found is None:
                if _is_capturing(operands[self.rows_of].device):
                    return NOT_LOADED
                found = self.ready[key] = self._made(way, rows, operands)
            result = found(operands)
            if len(self.known) == MOST_KNOWN:
                self.known.clear()
            self.known[lying] = found
            return result
        except KernelError as error:
            self.ready[key] = error.what
            return error.what

    def _made(self, way: str, rows: int, operands: Sequence[torch.Tensor]) -> Run:
        device = operands[self.rows_of].device
        architecture = machine.architecture_of(device)
        if device.type == "cpu" and not architecture:
            self.known[way] = run = on_processor(self.spec.program, way)
            return run
        sms = machine.multiprocessors(device)
        chosen = linear_kernel_spec(
            self.spec.program, operands, way, rows, architecture=architecture, sms=sms
        )
        return by_kernel(*chosen)


def _lying(x: torch.Tensor, operands: Sequence[torch.Tensor]) -> object:
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
def _library_of(program: Program) -> Run:
    """What computes a program by the library's calls, with contiguous results."""
    compute = function(program)
    kept, *more = program.kept
    if more:
        return lambda operands: [one.contiguous() for one in compute(operands, ())]
    if not kept.is_operand and overload(program.steps[kept.index].op) in BINDINGS:
        return lambda operands: compute(operands, ())[0]  # a GEMM's is contiguous
    return lambda operands: compute(operands, ())[0].contiguous()


_layers: dict[str, Layer] = {}


def run(operands: Sequence[torch.Tensor], spec: str) -> Any:
    """Compute what the op of these arguments gives."""
    layer = _layers.get(spec)
    if layer is None:
        parsed = LayerSpec.parse(spec)
        layer = Layer(parsed, calls_of(parsed.site), by_library_of(parsed.site))
        _layers[spec] = layer
    return layer(operands)


def _fake(operands: list[torch.Tensor], spec: str) -> Any:
    values = function(LayerSpec.parse(spec).program)(operands, ())
    made = [operands[0].new_empty(value.shape, dtype=value.dtype) for value in values]
    return made if len(made) > 1 else made[0]


for _name, _schema in ((NAME, SCHEMA), (NAME_OF_SEVERAL, f"{SCHEMA}[]")):
    # Inductor may not change the order of strides: a weight is most often a transposed view.
    _library.define(f"{_name}{_schema}", tags=(torch.Tag.needs_fixed_stride_order,))
    _library.impl(_name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"overlapc::{_name}", _fake, lib=_library)

OP, SEVERAL = torch.ops.overlapc.linear.default, torch.ops.overlapc.linears.default
