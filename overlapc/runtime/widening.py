"""Weights in a narrower dtype: which calls widen them, and what is left where a load does that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from overlapc.runtime.program import Program, Ref, Step, mapped

CAST, TURN = "prims.convert_element_type.default", "aten.permute.default"


@dataclass(frozen=True)
class Loaded:
    """A program whose GEMMs read weights as they are held."""

    program: Program
    """Without the calls that widen and transpose them."""
    turned: tuple[int, ...]
    """Operands that it takes transposed."""

    def operands(self, given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What it takes, from what the whole program is given."""
        if not self.turned:
            return given
        return [one.t() if index in self.turned else one for index, one in enumerate(given)]


@lru_cache(maxsize=1024)
def loaded(program: Program) -> Loaded:
    """Leave out the calls at a program's beginning that widen and transpose an operand."""
    held: list[tuple[int, bool]] = []
    for step in program.steps:
        source = step.args[0] if step.args else None
        if step.op not in (CAST, TURN) or not isinstance(source, Ref):
            break
        if step.op == CAST and source.is_operand:
            held.append((source.index, False))
        elif step.op == TURN and not source.is_operand and source.index < len(held):
            held.append((held[source.index][0], True))
        else:
            break
    first = len(held)

    def place(ref: Ref) -> Ref:
        if ref.is_operand:
            return ref
        if ref.index < first:
            return Ref("operand", held[ref.index][0])
        return Ref("value", ref.index - first)

    steps = mapped(program.steps[first:], place)
    turned = tuple(sorted({operand for operand, is_turned in held if is_turned}))
    kept = tuple(place(ref) for ref in program.kept)
    return Loaded(replace(program, steps=steps, kept=kept), turned)


def widened(program: Program, casts: Sequence[tuple[int, torch.dtype, bool]]) -> Program:
    """Put calls in front that widen operands and may transpose them: of each, its index, the dtype
    and whether it is transposed. The program's GEMMs then read what these give.
    """
    steps: list[Step] = []
    wide: dict[int, Ref] = {}
    for index, dtype, is_turned in casts:
        steps.append(Step(CAST, (Ref("operand", index), dtype)))
        if is_turned:
            steps.append(Step(TURN, (Ref("value", len(steps) - 1), (1, 0))))
        wide[index] = Ref("value", len(steps) - 1)
    first = len(steps)

    def place(ref: Ref) -> Ref:
        return wide.get(ref.index, ref) if ref.is_operand else Ref("value", ref.index + first)

    steps += mapped(program.steps, place)
    return replace(program, steps=tuple(steps), kept=tuple(place(ref) for ref in program.kept))
