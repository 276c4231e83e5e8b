"""A program whose runs of steps are compiled by Inductor, with rows that are a symbol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import sympy
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._python_dispatch import _disable_current_modes

from overlapc.runtime.programs.execution import Call, Function, Fused, code, fill, overload, trace
from overlapc.runtime.programs.program import ROWS, Program, Ref, Step
from overlapc.runtime.programs.runs import Run, parts_of

Sizes = tuple[int, ...]
"""Rows, and where columns vary too, how many those are."""


def row_strides(tensor: torch.Tensor) -> Sizes | None:
    """Return a tensor's strides; None for a matrix whose rows follow one another."""
    strides = tensor.stride()
    return None if strides[:-1] == tensor.shape[1:] and strides[-1:] == (1,) else strides


class Compilation:
    """A program for operands and written tensors that lie like these, and have other sizes."""

    def __init__(
        self,
        program: Program,
        written: Sequence[Ref],
        cut: Sequence[bool],
        hints: Sizes,
    ) -> None:
        """``cut``: of which operands columns vary, or none. Code is made for sizes like ``hints``,
        each 2 or more, where sizes matter to its speed."""
        self.program, self.written, self.cut = program, tuple(written), cut
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)
        self.symbols = [self._symbol(name, hint) for name, hint in zip("rc", hints, strict=False)]

    def _symbol(self, name: str, hint: int) -> torch.SymInt:
        from torch._dynamo.source import ConstantSource

        source = ConstantSource(name)
        symbol = self.env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
        size = self.env.create_symintnode(symbol, hint=hint, source=source)
        assert isinstance(size, torch.SymInt)
        return size

    def function(
        self, operands: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
    ) -> Function:
        """Return what computes the program; raises what Inductor raises."""
        sizes = [f"o[{self.program.modes.index(ROWS)}].shape[0]"]
        if any(self.cut):
            sizes.append(f"o[{list(self.cut).index(True)}].shape[-1]")
        with _alone(), tracing(TracingContext(self.mode)):
            given = self._operands(operands)
            values = self._values(given, self._places(places))
            self.order = [
                run.steps[0] if len(run.steps) == 1 else self._fused(run, given, values)
                for run in parts_of(self.program)
            ]
        self.sizes = sizes
        return code(self.program, self.written, self.order, sizes)

    def after_first_run(self) -> Function:
        """Return the same past what Inductor does around a call for the sake of the first."""
        order = [
            replace(item, call=getattr(item.call, "current_callable", item.call))
            if isinstance(item, Fused)
            else item
            for item in self.order
        ]
        return code(self.program, self.written, order, self.sizes)

    def holds(self, sizes: Sizes) -> bool:
        """Whether what was compiled may run for these sizes."""
        given = zip(self.symbols, sizes, strict=True)
        at = {symbol.node.expr: sympy.Integer(size) for symbol, size in given}
        return all(guard.expr.xreplace(at) == sympy.true for guard in self.env.guards)

    def _operands(self, operands: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        cut = self.cut or [False] * len(operands)
        modes = self.program.modes
        return [
            self._like(tensor, mode == ROWS, is_cut)
            for tensor, mode, is_cut in zip(operands, modes, cut, strict=True)
        ]

    def _places(self, places: Sequence[torch.Tensor]) -> dict[Ref, torch.Tensor]:
        has_cut = any(self.cut)
        return {
            ref: self._like(place, True, has_cut)
            for ref, place in zip(self.written, places, strict=True)
        }

    def _like(self, tensor: torch.Tensor, by_rows: bool, is_cut: bool) -> torch.Tensor:
        """A tensor without content that lies as this one does, and has the symbols as sizes."""
        shape: list[Any] = list(tensor.shape)
        if by_rows:
            shape[0] = self.symbols[0]
        if is_cut:
            shape[-1] = self.symbols[1]
        with self.mode:
            kind = {"dtype": tensor.dtype, "device": tensor.device}
            if is_cut and row_strides(tensor) is None:
                return torch.empty(shape, **kind)
            return torch.empty_strided(shape, tensor.stride(), **kind)

    def _values(
        self, operands: Sequence[torch.Tensor], places: dict[Ref, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Every step's value, without content; of what is written, the place: views are of that."""
        written = {ref.index: place for ref, place in places.items()}
        index = count()

        def value(_: Step, op: Any, args: list[Any], more: Mapping[str, Any]) -> torch.Tensor:
            made: torch.Tensor = op(*args, **more)
            return written.get(next(index), made)

        with self.mode, enable_python_dispatcher():
            return trace(self.program, operands, value)

    def _fused(
        self, run: Run, operands: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
    ) -> Fused:
        writes = tuple(ref for ref in self.written if ref.index in run.steps)
        gives = tuple(ref for ref in run.gives if ref not in writes)
        tensors = [fill(ref, operands, values) for ref in (*run.reads, *writes)]
        call = self._compiled(_body(self.program, run, gives, writes), tensors)
        return Fused(call, run.reads, gives, writes)

    def _compiled(self, body: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Call:
        from torch._inductor.decomposition import select_decomp_table

        inputs = [*self.symbols, *tensors]
        with self.mode, enable_python_dispatcher():
            graph = make_fx(body, decomposition_table=select_decomp_table())(*inputs)
        return by_inductor(graph, inputs)


def by_inductor(graph: fx.GraphModule, inputs: Sequence[Any]) -> Call:
    """Return what computes a graph of ATen calls, for any values of the symbols among its inputs
    that the guards allow that it adds to their environment."""
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.utils import BoxedBool

    return compile_fx_inner(graph, inputs, cudagraphs=BoxedBool(False))


def _body(
    program: Program, run: Run, gives: Sequence[Ref], writes: Sequence[Ref]
) -> Callable[..., Any]:
    """A run as a function of sizes, what it reads, and what it writes to."""

    def body(*given: Any) -> tuple[torch.Tensor, ...]:
        reads = given[len(given) - len(run.reads) - len(writes) :]
        operands, values = {}, {}
        for ref, tensor in zip(run.reads, reads, strict=False):
            (operands if ref.is_operand else values)[ref.index] = tensor
        for index in run.steps:
            step = program.steps[index]
            args = [fill(arg, operands, values) for arg in step.args]
            named = {name: fill(arg, operands, values) for name, arg in step.kwargs}
            values[index] = overload(step.op)(*args, **named)
        for ref, place in zip(writes, reads[len(run.reads) :], strict=True):
            place.copy_(values[ref.index])
        return tuple(values[ref.index] for ref in gives)

    return body


@contextmanager
def _alone() -> Iterator[None]:
    """Nothing of the caller's is compiled in; who calls holds Dynamo's lock."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C._DisableAutocast())
        stack.enter_context(torch.no_grad())
        yield
