"""Which operands of a producer's program a group of columns takes in part: found by their shapes.

From the results backwards: columns of a pointwise value need those columns of what it reads, and
columns of a GEMM need those of its right operand and bias, and all of its left operand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from overlapc.runtime.programs.execution import CASTS, overload
from overlapc.runtime.programs.program import Program, Ref, Step, refs

aten = torch.ops.aten

LEFT = {aten.mm.default: 0, aten.addmm.default: 1}
"""The GEMMs of two matrices, and where their arguments have the left one."""

Read = tuple[Ref, bool]
"""A tensor that a step reads, and whether it needs some columns of it only."""


def cut_operands(
    program: Program, operands: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
) -> tuple[bool, ...] | None:
    """Return of which operands a group of columns takes those of the last dimension only.

    The others it takes whole. None where columns may not be cut. They may where the program is one
    GEMM of two matrices, the left one an operand, and pointwise steps, where all its results are
    ``[units, n]``, and where nothing is needed both in part and whole. ``values`` are those of the
    steps; tensors need no content.
    """

    def tensor(ref: Ref) -> torch.Tensor:
        return (operands if ref.is_operand else values)[ref.index]

    (units, *columns), *others = (tuple(tensor(ref).shape) for ref in program.results)
    if any(ref.is_operand for ref in program.results):
        return None
    # One column looks like what is broadcast to columns.
    if len(columns) != 1 or columns[0] < 2 or any(other != (units, *columns) for other in others):
        return None
    if sum(overload(step.op) in LEFT for step in program.steps) != 1:
        return None
    is_cut = dict.fromkeys(program.results, True)
    for index, step in reversed(list(enumerate(program.steps))):
        reads = _reads(step, is_cut.get(Ref("value", index)), columns[0], tensor)
        if reads is None or any(is_cut.setdefault(ref, cut) != cut for ref, cut in reads):
            return None
    return tuple(is_cut.get(Ref("operand", index), False) for index in range(len(operands)))


def _reads(
    step: Step, is_cut: bool | None, n: int, tensor: Callable[[Ref], torch.Tensor]
) -> list[Read] | None:
    """What a step reads for some of the n columns of its value, or for all of it.

    None where that cannot be said, or where nobody knows how much of the value is needed.
    """
    op, given = overload(step.op), list(refs(step))
    if is_cut is None or not (op in LEFT or _is_pointwise(op)):
        return None
    if not is_cut:
        return None if op in LEFT else [(ref, False) for ref in given]
    reads: list[Read] = []
    if op in LEFT:
        left = step.args[LEFT[op]]
        if not left.is_operand:
            return None  # every group would compute it again
        given.remove(left)
        reads = [(left, False)]
    for ref in given:
        last = (1, *tensor(ref).shape)[-1]
        if last not in (1, n):
            return None
        reads.append((ref, last == n))
    return reads


def _is_pointwise(op: torch._ops.OpOverload) -> bool:
    """Whether an op computes each element from those at its place, and the same at every call."""
    if op._schema.is_mutable or torch.Tag.nondeterministic_seeded in op.tags:
        return False
    # A view in another dtype is one where the columns stay as many, which is looked at above.
    return op in CASTS or op is aten.view.dtype or torch.Tag.pointwise in op.tags
