"""A program of several results as one program for each."""

from __future__ import annotations

from functools import lru_cache

from overlapc.runtime.programs.program import Program, Ref, Step, mapped


@lru_cache(maxsize=1024)
def parts_of(program: Program) -> tuple[Program, ...]:
    """One program for each value that is kept, of the steps that it needs, on all operands."""
    if len(program.kept) == 1:
        return (program,)
    return tuple(_part(program, ref) for ref in program.kept)


def _part(program: Program, result: Ref) -> Program:
    needed, waiting = set[int](), [result]
    while waiting:
        ref = waiting.pop()
        if not ref.is_operand and ref.index not in needed:
            needed.add(ref.index)
            waiting += refs_of(program.steps[ref.index])
    kept = sorted(needed)

    def place(ref: Ref) -> Ref:
        return ref if ref.is_operand else Ref("value", kept.index(ref.index))

    steps = mapped([program.steps[index] for index in kept], place)
    return Program(program.modes, steps, None, (place(result),))


def refs_of(step: Step) -> list[Ref]:
    """Every tensor that a step takes."""
    found, waiting = [], [*step.args, *(arg for _, arg in step.kwargs)]
    while waiting:
        arg = waiting.pop()
        if isinstance(arg, Ref):
            found.append(arg)
        elif isinstance(arg, tuple):
            waiting += arg
    return found
