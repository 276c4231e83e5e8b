"""Which steps of a program one kernel may compute: those between GEMMs, as Inductor fuses them."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.runtime.programs.execution import GEMMS, is_view, overload
from overlapc.runtime.programs.program import Program, Ref, refs


@dataclass(frozen=True)
class Run:
    """Steps that are computed together."""

    steps: tuple[int, ...]
    """Their indices, in the order in which each can follow those before it."""
    reads: tuple[Ref, ...]
    """What they need that none of them gives."""
    gives: tuple[Ref, ...]
    """Which of their values others read, or the program gives."""


def parts_of(program: Program) -> tuple[Run, ...]:
    """Return a program's steps in an order in which they can run: GEMMs one by one, and of the
    other steps those together that fit between the same GEMMs.

    A GEMM runs as soon as it can, and another step as late as it may, together with what reads it.
    A run of fewer than two steps that compute something is left as single steps.
    """
    reads = [tuple(dict.fromkeys(refs(step))) for step in program.steps]
    places = _places(program, reads)
    phases: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        phases.setdefault(place, []).append(index)
    groups: list[tuple[int, ...]] = []
    for _, steps in sorted(phases.items()):
        working = [index for index in steps if not is_view(overload(program.steps[index].op))]
        is_gemm = overload(program.steps[steps[0]].op) in GEMMS
        alone = is_gemm or len(working) < 2
        groups += [(index,) for index in steps] if alone else [tuple(steps)]
    return tuple(_run(program, steps, reads) for steps in groups)


def _places(program: Program, reads: list[tuple[Ref, ...]]) -> list[int]:
    """Where each step runs: GEMMs at odd places, what is between them at even ones."""
    levels: list[int] = []  # how many GEMMs have to run before a step's value is known
    for step, its in zip(program.steps, reads, strict=True):
        known = max((levels[ref.index] for ref in its if not ref.is_operand), default=0)
        levels.append(known + (overload(step.op) in GEMMS))
    places = [2 * max(levels, default=0)] * len(levels)
    for index in reversed(range(len(levels))):
        if overload(program.steps[index].op) in GEMMS:
            places[index] = 2 * levels[index] - 1
        for ref in reads[index]:
            if not ref.is_operand:
                before = places[index] - (places[index] % 2)
                places[ref.index] = min(places[ref.index], before)
    return places


def _run(program: Program, steps: tuple[int, ...], reads: list[tuple[Ref, ...]]) -> Run:
    inside = {Ref("value", index) for index in steps}
    needed = dict.fromkeys(ref for index in steps for ref in reads[index] if ref not in inside)
    others = {ref for index, its in enumerate(reads) if index not in steps for ref in its}
    wanted = others | set(program.results)
    gives = (Ref("value", index) for index in steps)
    return Run(steps, tuple(needed), tuple(ref for ref in gives if ref in wanted))
