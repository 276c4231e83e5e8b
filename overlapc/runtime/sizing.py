"""From a chain's program and the sizes of a call to the planner's `Problem`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from overlapc.codegen.tiles import is_bare, most_sums
from overlapc.errors import KernelError
from overlapc.planning.kernel_tiles import layout_of
from overlapc.planning.problem import COLLECTIVE_FIRST, GEMM_FIRST, PER_TENSOR, Problem
from overlapc.runtime.cutting.column_roles import cut_operands
from overlapc.runtime.programs.execution import is_view, overload, trace
from overlapc.runtime.programs.program import ROWS, Program, Ref, Step
from overlapc.runtime.programs.runs import parts_of
from overlapc.runtime.programs.trial_programs import text_of
from overlapc.runtime.shapes import moved
from overlapc.runtime.signaled.kernels import lowered_chain
from overlapc.runtime.spec import ChainSpec

aten = torch.ops.aten

LEFT_AND_RIGHT = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten._scaled_mm.default: (0, 1),
    aten._grouped_mm.default: (0, 1),
    aten._scaled_grouped_mm.default: (0, 1),
}
"""The ops that are GEMMs, and where their arguments have A and B."""


@dataclass(frozen=True)
class _Gemm:
    rows: int
    n: int
    k: int
    dtype: torch.dtype
    scales: str = ""

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k


def problem_of(
    spec: ChainSpec,
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype],
    world_size: int,
    receives: Sequence[int] = (),
    outer: int = 1,
    strides: Sequence[Sequence[int]] = (),
) -> Problem:
    """Return what is planned for a call with operands of these shapes; ``ProblemError`` if nothing.

    Of an uneven all-to-all ``receives`` are the units from each rank; ``outer`` is how many blocks
    of units are dealt out to the ranks, one after another. Of several GEMMs it is the one that has
    as many rows, flops and bytes to send as all of them. Without ``strides`` A and B lie as those
    of a linear layer.
    """
    operands = _empty(shapes, dtypes)
    if spec.is_consumer:
        operands[0] = moved(spec, operands[0], receives, world_size)
    values, gemms, epilogue_bytes = _trace(spec, operands)
    sent = spec.program.sent or Ref("operand", 0)
    sent = operands[sent.index] if sent.is_operand else values[sent.index]
    units = sent.shape[0]
    rows_per_unit = max(gemms[0].rows // units, 1) if gemms and units else 1
    m = units * rows_per_unit
    columns = prod(sent.shape) // m if m else prod(sent.shape[1:])
    # A rank that has no rows now decides as those that have some.
    flops = sum(gemm.flops for gemm in gemms) if m else sum(2 * g.n * g.k for g in gemms)
    other = -(-flops // (2 * max(m, 1) * columns)) if columns else _other_size(spec, gemms)
    dealt = spec.axis == 0 and spec.collective != "all_reduce" and units % world_size == 0
    # A graph with numbers for an even deal holds no more than one with others: of it ranks know
    # neither, and groups are parts of whatever each rank gets.
    is_told = bool(receives) and not spec.is_consumer
    dealt = dealt and not is_told
    return Problem(
        m=m,
        n=other if spec.is_consumer else columns,
        k=columns if spec.is_consumer else other,
        dtype=_name(gemms[0].dtype if gemms else sent.dtype),
        collective=spec.collective,
        world_size=world_size,
        epilogue_bytes=epilogue_bytes,
        order=COLLECTIVE_FIRST if spec.is_consumer else GEMM_FIRST,
        sent_dtype=_name(sent.dtype),
        row_multiple=rows_per_unit * world_size if dealt else rows_per_unit,
        axis=spec.axis,
        cuts_columns=_column_operands(spec, operands, values) is not None,
        **_of_kernel(spec, operands, strides),
        blocks=outer if dealt else 1,
        deals_unevenly=is_told,
        takes_map=spec.takes_map,
        # Rows that come unevenly are not those of a trial, all of whose ranks send alike.
        program=text_of(spec, operands, rows_per_unit) if dealt or is_told or not receives else "",
        scales=gemms[0].scales if gemms else "",
    )


def _other_size(spec: ChainSpec, gemms: Sequence[_Gemm]) -> int:
    """Columns of GEMMs that contract nothing, or what those contract that have no columns."""
    return sum(gemm.n if spec.is_consumer else gemm.k for gemm in gemms)


def column_operands(
    spec: ChainSpec, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]
) -> tuple[bool, ...] | None:
    """Return which operands a group of columns takes in part; None where columns may not be cut.

    For a call that deals out the same number of units to every rank.
    """
    operands = _empty(shapes, dtypes)
    return _column_operands(spec, operands, _trace(spec, operands)[0])


def _column_operands(
    spec: ChainSpec, operands: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
) -> tuple[bool, ...] | None:
    if spec.is_consumer or (spec.axis and spec.collective != "all_reduce"):
        return None
    return cut_operands(spec.program, operands, values)


def _of_kernel(
    spec: ChainSpec, operands: Sequence[torch.Tensor], strides: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What a problem says of the kernel that computes the chain; nothing where none does."""
    try:
        lowered = lowered_chain(spec, operands)
    except KernelError:
        return {}
    found: dict[str, Any] = {
        "kernel_sums": most_sums(lowered.epilogue),
        "computes_beside": not is_bare(lowered.epilogue),
    }
    if strides:
        matrices = lowered.a, lowered.b
        found["layouts"] = tuple(layout_of(strides[i], operands[i].shape) for i in matrices)
    return found


def _empty(shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> list[torch.Tensor]:
    """Tensors without content."""
    return [
        torch.empty(tuple(shape), dtype=dtype, device="meta")
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def _trace(
    spec: ChainSpec, operands: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[_Gemm], int]:
    """Every step's value, the GEMMs, and the bytes that the other steps read and write."""
    gemms: list[_Gemm] = []

    def call(
        step: Step, op: torch._ops.OpOverload, args: list[Any], kwargs: Mapping[str, Any]
    ) -> torch.Tensor:
        if op in LEFT_AND_RIGHT:
            value, gemm = _gemm(op, args, kwargs)
            gemms.append(gemm)
            return value
        return op(*args, **kwargs)

    values = trace(spec.program, operands, call)
    return values, gemms, _bytes_beside(spec.program, operands, values)


def _bytes_beside(
    program: Program, operands: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
) -> int:
    """What runs of steps between GEMMs read by rows and give: each is one pass."""
    found = 0
    for run in parts_of(program):
        ops = [overload(program.steps[index].op) for index in run.steps]
        if all(op in LEFT_AND_RIGHT or is_view(op) for op in ops):
            continue
        read = [ref.index for ref in run.reads if ref.is_operand]
        rows = [operands[index] for index in read if program.modes[index] == ROWS]
        found += sum(t.nbytes for t in (*rows, *(values[ref.index] for ref in run.gives)))
    return found


def _gemm(
    op: torch._ops.OpOverload, args: list[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, _Gemm]:
    """A GEMM's value and sizes by its shapes alone; kernels would want strides too."""
    left, right = (args[place] for place in LEFT_AND_RIGHT[op])
    *rows, k = left.shape
    out = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.dtype)]
    value = left.new_empty((*rows, right.shape[-1]), dtype=out[0] if out else left.dtype)
    of_tensors = op == aten._scaled_mm.default and all(t.numel() == 1 for t in args[2:4])
    scales = PER_TENSOR if of_tensors else ""
    return value, _Gemm(prod(rows), right.shape[-1], k, left.dtype, scales)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
