"""What a trial computes beside a plain GEMM: a chain's program and its operands, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from overlapc.planning.kernel_tiles import strides_of
from overlapc.planning.problem import Problem
from overlapc.runtime.cutting import columns
from overlapc.runtime.programs.execution import is_view, overload
from overlapc.runtime.programs.program import OFFSETS, ROWS, WHOLE, Program, Ref, Step, canonical
from overlapc.runtime.spec import ChainSpec

CAST = "prims.convert_element_type.default"
CASTS = (CAST, "aten._to_copy.default")
MM = "aten.mm.default"
RIGHT = {
    MM: 1,
    "aten.addmm.default": 2,
    "aten.bmm.default": 1,
    "aten.baddbmm.default": 2,
    "aten._scaled_mm.default": 1,
    "aten._grouped_mm.default": 1,
}
"""Which argument of a GEMM that is tried is B."""


def text_of(spec: ChainSpec, operands: Sequence[torch.Tensor], rows_per_unit: int) -> str:
    """Return a chain's program and its operands but for their units, as `TrialProgram` reads them;
    empty where a trial needs no more than the problem's sizes, or cannot compute the chain.

    ``operands`` are those of the program: of a consumer the first is what has come.
    ``rows_per_unit``: rows of the first GEMM in a unit, which is what operands have in dimension 0.
    """
    program = spec.program
    ops = [step.op for step in program.steps if not is_view(overload(step.op))]
    is_plain = ops[:1] == [MM] and all(op in CASTS for op in ops[1:]) and len(program.results) == 1
    if is_plain or not RIGHT.keys() & set(ops):
        return ""
    given = zip(program.modes, operands, strict=True)
    facts = [[_name(t.dtype), list(t.shape)[mode == ROWS :]] for mode, t in given]
    values = {"program": program.value(), "operands": facts, "rows": rows_per_unit}
    return canonical(values)


def packed(problem: Problem, computed: torch.Tensor) -> torch.Tensor:
    """Return what a producer computes, in the order of the ranks that get it.

    Rows that are only tried may not be whole blocks for each: these stay as they are.
    """
    ranks, outer = problem.world_size, problem.blocks
    if problem.axis:
        return columns.pack(computed, ranks)
    if problem.parts > 1 and outer > 1 and len(computed) % (outer * ranks) == 0:
        return computed.unflatten(0, (outer, ranks, -1)).transpose(0, 1).contiguous()
    return computed


def sent_of(problem: Problem, come: torch.Tensor) -> torch.Tensor:
    """Return what a rank may send, so that ``come`` is like what comes of a consumer's collective.

    It is contiguous, and in the order of the ranks that get it.
    """
    ranks = problem.world_size
    packed = columns.pack(come, ranks) if problem.axis else come
    if problem.collective == "all_to_all":
        return packed
    return packed[: len(packed) // ranks]


def placed(problem: Problem, landed: torch.Tensor, come: torch.Tensor) -> torch.Tensor:
    """Return what has come, flat and in the order of the ranks that sent it, as ``come`` lies."""
    ranks, outer = problem.world_size, problem.blocks
    if problem.axis:
        units, width, *rest = come.shape
        return columns.unpack(landed.view(ranks * units, width // ranks, *rest), ranks)
    if outer > 1:
        landed = landed.view(ranks, outer, -1).transpose(0, 1).contiguous()
    return landed.view(come.shape)


@dataclass(frozen=True)
class TrialProgram:
    """A chain's program, and what its operands are like."""

    program: Program
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    """Dtype of each, and its sizes but for the units."""
    rows_per_unit: int = 1
    layouts: tuple[str, str] = ("row", "col")
    """Of A and B, where they are matrices."""

    @classmethod
    def of(cls, problem: Problem) -> TrialProgram:
        """What a trial of the problem computes: a GEMM and the cast of what is sent, by default."""
        if problem.program:
            value = json.loads(problem.program)
            facts = tuple((name, tuple(sizes)) for name, sizes in value["operands"])
            return cls(Program.from_value(value["program"]), facts, value["rows"], problem.layouts)
        p = problem
        steps = [Step("aten.mm.default", (Ref("operand", 0), Ref("operand", 1)))]
        if p.sent_dtype not in ("", p.dtype):
            steps.append(Step(CAST, (Ref("value", 0), getattr(torch, p.sent_dtype))))
        program = Program((ROWS, WHOLE), tuple(steps), Ref("value", len(steps) - 1))
        return cls(program, ((p.dtype, (p.k,)), (p.dtype, (p.k, p.n))), layouts=p.layouts)

    def tensors(self, rows: int, device: torch.device) -> list[torch.Tensor]:
        """Random operands of so many rows; A and B lie as the problem says, but for
        those of experts, which are contiguous."""
        laid = {}
        for step in self.program.steps:
            if step.op in RIGHT:
                right = RIGHT[step.op]
                laid |= zip(step.args[right - 1 : right + 1], self.layouts, strict=True)
        made = []
        for index, (name, sizes) in enumerate(self.operands):
            by_rows = self.program.modes[index] == ROWS
            shape = (rows // self.rows_per_unit, *sizes) if by_rows else sizes
            layout, dtype = laid.get(Ref("operand", index)), getattr(torch, name)
            if self.program.modes[index] == OFFSETS:  # which are data; experts are as busy here
                units = rows // self.rows_per_unit
                made.append(torch.arange(1, shape[0] + 1, device=device) * units // shape[0])
                made[-1] = made[-1].to(dtype)
            elif layout and len(shape) == 2:
                made.append(random_matrix(shape, layout, dtype, device))
            else:
                made.append(torch.randn(shape, device=device).to(dtype))
        return made


def random_matrix(
    shape: tuple[int, int], layout: str, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A matrix that lies as `planning.kernel_tiles.LAYOUT` says."""
    strides = strides_of(layout, *shape)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements = torch.randn(last + 1 if all(shape) else 0, device=device).to(dtype)
    return elements.as_strided(shape, strides)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
