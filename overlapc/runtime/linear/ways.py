"""Ways of a processor to multiply few rows by a weight, beside what torch itself does with them.

Both give the library the same numbers in another shape, and copy no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from overlapc.planning.linear.tiles import FLAT, GEMV
from overlapc.runtime.programs.execution import trace
from overlapc.runtime.programs.program import WHOLE, Program, Step

aten = torch.ops.aten

Run = Callable[[Sequence[torch.Tensor]], torch.Tensor | list[torch.Tensor]]
"""From a program's operands to its result, or to each of several."""


def on_processor(program: Program, way: str) -> Run:
    """Return a run of a program whose GEMMs are computed in that way, and the rest as it stands."""
    multiply = _WAYS[way]
    if (alone := _alone(program)) is not None:
        bias, x, w = alone
        if bias is None:
            return lambda given: multiply(None, given[x], given[w])
        return lambda given: multiply(given[bias].reshape(-1), given[x], given[w])

    def call(
        step: Step, op: torch._ops.OpOverload, args: list[Any], kwargs: Mapping[str, Any]
    ) -> torch.Tensor:
        del step
        if op == aten.mm.default:
            return multiply(None, args[0], args[1])
        if op == aten.addmm.default and not kwargs and args[0].dim() == 1:
            return multiply(args[0], args[1], args[2])
        return op(*args, **kwargs)

    places = [result.index for result in program.kept]

    def run(operands: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        values = trace(program, operands, call)
        return [values[at] for at in places] if len(places) > 1 else values[places[0]]

    return run


def _alone(program: Program) -> tuple[int | None, int, int] | None:
    """Which operands are bias, rows and weight of a program that is one GEMM; None where it is not.

    Walking over a program takes as long as a small GEMM.
    """
    (step, *more) = program.steps
    if more or step.kwargs or len(program.kept) > 1:
        return None
    places = [ref.index for ref in step.args]
    if step.op == "aten.mm.default":
        return None, places[0], places[1]
    if step.op == "aten.addmm.default" and program.modes[places[0]] == WHOLE:
        return places[0], places[1], places[2]
    return None


def vectors(bias: torch.Tensor | None, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """One matrix-vector product a row."""
    transposed = w.t()
    rows = [
        torch.mv(transposed, row) if bias is None else torch.addmv(bias, transposed, row)
        for row in x
    ]
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)


def swapped(bias: torch.Tensor | None, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The weight as the left operand: its columns are what a library cuts into tiles."""
    left, right = w.t(), x.t()
    if bias is None:
        return torch.mm(left, right).t().contiguous()
    return torch.addmm(bias.unsqueeze(1), left, right).t().contiguous()


_WAYS = {GEMV: vectors, FLAT: swapped}
