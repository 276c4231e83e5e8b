"""Instructions as functions of a CTA and the threads that execute them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.emulated import hopper, moving
from tests.emulated.arithmetic import computed
from tests.emulated.assembly import Instruction, Number, Symbol, Vector
from tests.emulated.moving import ATOMICS, parts_of
from tests.emulated.threads import DONE, WAITS, Cta, Step
from tests.emulated.values import UNSIGNED, bits_of, bytes_of
from tests.emulated.warps import matrix_row_lanes, matrix_rows, products, shuffled

NOTHING = ("membar", "prefetch", "griddepcontrol", "createpolicy")
"""What changes nothing where threads see at once what others wrote to tensors."""


def step_of(instruction: Instruction) -> Step:
    """What an instruction does; one that is not known raises where it is executed."""
    op = instruction.op
    if op in NOTHING:
        return lambda cta, active: None
    special = SPECIAL.get(op) or (_packed if op == "mov" and _is_packed(instruction) else None)
    if special is not None:
        return _guarded(instruction, special)
    if not instruction.operands:
        return _unknown
    others = int(op == "setp" and len(instruction.operands) == 4 and len(instruction.marks) == 2)
    first, *rest = instruction.operands
    found = computed(replace(instruction, operands=(first, *rest[others:])))
    if found is None:
        return _unknown
    sources, result, function = found

    def compute(cta: Cta, own: Instruction, active: Any) -> None:
        operands = zip(rest[others:], sources, strict=True)
        numbers = function(*(cta.numbers(each, kind) for each, kind in operands))
        cta.set_numbers(first, numbers, result, active)
        for other in rest[:others]:  # what is not so
            cta.set_numbers(other, ~numbers, result, active)

    return _guarded(instruction, compute)


def _guarded(instruction: Instruction, step: Any) -> Step:
    def guarded(cta: Cta, active: Any) -> None:
        acting = cta.acting(instruction, active)
        if acting.any():
            step(cta, instruction, acting)

    return guarded


def _unknown(cta: Cta, active: Any) -> None:
    raise NotImplementedError("an instruction that is not emulated")


def _is_packed(instruction: Instruction) -> bool:
    return any(isinstance(each, Vector) for each in instruction.operands)


def _packed(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``mov`` between one register and several narrow ones."""
    to, source = instruction.operands
    size = bytes_of(instruction.kind)
    if isinstance(source, Vector):
        part = size // len(source.parts)
        whole = np.zeros(cta.threads, UNSIGNED[size])
        for index, each in enumerate(source.parts):
            own = cta.bits(each, part).astype(UNSIGNED[size])
            whole |= own << UNSIGNED[size](8 * part * index)
        cta.set_bits(to, whole, active)
        return
    assert isinstance(to, Vector)
    part = size // len(to.parts)
    whole = cta.bits(source, size)
    for index, each in enumerate(to.parts):
        cta.set_bits(
            each, (whole >> UNSIGNED[size](8 * part * index)).astype(UNSIGNED[part]), active
        )


def _branch(cta: Cta, instruction: Instruction, active: Any) -> None:
    (label,) = instruction.operands
    assert isinstance(label, Symbol)
    cta.jump(label.name, active)


def _barrier(cta: Cta, instruction: Instruction, active: Any) -> None:
    if instruction.marks[:1] == ("warp",):
        return
    if instruction.operands != (Number(0),):
        raise NotImplementedError("a barrier of some threads")
    cta.state[active] = WAITS


def _end(cta: Cta, instruction: Instruction, active: Any) -> None:
    cta.state[active] = DONE


def _shuffle(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, *truth, source, by, clamp, _ = instruction.operands
    how = instruction.marks[1]
    found, inside = shuffled(how, cta.bits(source, 4), cta.bits(by, 4), cta.bits(clamp, 4), active)
    cta.set_bits(to, found, active)
    if truth:
        cta.set_bits(truth[0], inside.astype(np.uint8), active)


def _reduce(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``redux.sync``, of whole warps."""
    to, source, _ = instruction.operands
    _whole_warps(active)
    how, kind = instruction.marks[-2:]
    lanes = cta.numbers(source, kind).reshape(-1, 32)
    found = ATOMICS[how].reduce(lanes, 1, dtype=lanes.dtype, keepdims=True)
    cta.set_numbers(to, np.broadcast_to(found, lanes.shape).reshape(-1), kind, active)


def _load_matrix(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, source = instruction.operands
    _whole_warps(active)
    count = len(parts_of(to))
    lanes = active & matrix_row_lanes(count, cta.threads)
    rows = np.zeros((cta.threads, 16), np.uint8)
    rows[lanes] = cta.shared.load(cta.addresses(source, 4)[lanes], 16, cta.warps[lanes])
    found = matrix_rows(rows, count, transposed="trans" in instruction.marks)
    for part, bits in zip(parts_of(to), found, strict=True):
        cta.set_bits(part, bits, active)


def _multiply(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, a, b, total = instruction.operands
    _whole_warps(active)
    _, _, shape, *order, out, left, right, summed = instruction.marks
    if order != ["row", "col"] or (out, summed) != ("f32", "f32") or left != right:
        raise NotImplementedError("a product of other types")
    sides = [[cta.bits(part, 4) for part in parts_of(side)] for side in (a, b)]
    sums = [cta.numbers(part, "f32") for part in parts_of(total)]
    found = products(shape, left, sides[0], sides[1], sums)
    for part, numbers in zip(parts_of(to), found, strict=True):
        cta.set_bits(part, bits_of(numbers, "f32"), active)


def _whole_warps(active: Any) -> None:
    by_warp = active.reshape(-1, 32)
    assert (by_warp.all(1) == by_warp.any(1)).all(), "not all threads of a warp take part"


SPECIAL: dict[str, Any] = {
    "bra": _branch, "bar": _barrier, "barrier": _barrier, "ret": _end, "exit": _end,
    "shfl": _shuffle, "redux": _reduce, "ldmatrix": _load_matrix, "mma": _multiply,
    **moving.STEPS, **hopper.STEPS,
}  # fmt: skip
