"""Casts of what an epilogue reads, of a scale held in float32: made in the op and not before it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import fx

from overlapc.graphs.chains.bands import Operand
from overlapc.graphs.values import value_of
from overlapc.runtime.linear.norming import GEMMS
from overlapc.runtime.programs.program import WHOLE, Program, Ref, Step, mapped

CAST = torch.ops.prims.convert_element_type.default
WIDE = (torch.float32, torch.bfloat16, torch.float16)
"""Casts among these are lowered, and round in a kernel as they do in eager."""


def cast_within(
    program: Program, operands: Sequence[Operand], readers: Collection[fx.Node]
) -> tuple[Program, list[Operand], set[fx.Node]]:
    """Let a program of whole tensors after its GEMMs make their casts, where only ``readers`` read
    those; with the casts that then are nowhere read."""
    given, casts = list(operands), set[fx.Node]()
    for at, operand in enumerate(operands):
        first = _first_use(program.steps, Ref("operand", at))
        if first is None or not _is_cast_for(operand, readers):
            continue
        (source,) = operand.node.all_input_nodes
        program = _with_cast(program, at, first, value_of(operand.node).dtype)
        given[at] = replace(operand, node=source)
        casts.add(operand.node)
    return program, given, casts


def _is_cast_for(operand: Operand, readers: Collection[fx.Node]) -> bool:
    node = operand.node
    is_plain = operand.mode == WHOLE and operand.fill is None and operand.permuted is None
    if not is_plain or node.target is not CAST or not _is_static(operand):
        return False
    (source,) = node.all_input_nodes
    dtypes = {value_of(source).dtype, value_of(node).dtype}
    return dtypes <= set(WIDE) and all(user in readers for user in node.users)


def _is_static(operand: Operand) -> bool:
    return all(isinstance(size, int) for size in operand.shape or ())


def _first_use(steps: Sequence[Step], ref: Ref) -> int | None:
    """Which step reads an operand first; None where a GEMM does."""
    uses = [index for index, step in enumerate(steps) if ref in _read(step)]
    return uses[0] if uses and not any(steps[index].op in GEMMS for index in uses) else None


def _read(step: Step) -> list[Ref]:
    found: list[Ref] = []

    def note(ref: Ref) -> Ref:
        found.append(ref)
        return ref

    mapped([step], note)
    return found


def _with_cast(program: Program, operand: int, at: int, dtype: torch.dtype) -> Program:
    """A program that casts an operand before its step number ``at``, for that and all later."""
    whole = Ref("operand", operand)

    def place(ref: Ref) -> Ref:
        if ref == whole:
            return Ref("value", at)
        return ref if ref.is_operand or ref.index < at else Ref("value", ref.index + 1)

    cast = Step(str(CAST), (whole, dtype))
    steps = (*program.steps[:at], cast, *mapped(program.steps[at:], place))
    return replace(program, steps=steps, kept=tuple(place(ref) for ref in program.kept))
