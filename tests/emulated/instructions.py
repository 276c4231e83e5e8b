"""Instructions as functions of a CTA and the threads that execute them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulated import hopper
from tests.emulated.arithmetic import computed
from tests.emulated.assembly import Address, Instruction, Number, Register, Symbol, Vector
from tests.emulated.memory import Copy
from tests.emulated.threads import DONE, WAITS, Cta, Step
from tests.emulated.values import UNSIGNED, bits_of, bytes_of, typed
from tests.emulated.warps import matrix_row_lanes, matrix_rows, products, shuffled

SPACES = ("param", "global", "shared", "local", "const")
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
    found = computed(instruction)
    if found is None:
        return _unknown
    sources, result, function = found

    def compute(cta: Cta, own: Instruction, active: Any) -> None:
        to, *operands = own.operands
        numbers = (cta.numbers(each, kind) for each, kind in zip(operands, sources, strict=True))
        cta.set_numbers(to, function(*numbers), result, active)

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


def _space(instruction: Instruction) -> str:
    found = [mark.partition("__")[0] for mark in instruction.marks]
    return next((mark for mark in found if mark in SPACES), "generic")


def _parts(operand: Any) -> tuple[Any, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def _load(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, source = instruction.operands[:2]
    parts, kind = _parts(to), instruction.kind
    size = bytes_of(kind)
    if _space(instruction) == "param":
        assert isinstance(source, Address)
        assert isinstance(source.base, Symbol)
        held = cta.parameters[source.base.name][source.offset :]
        rows = np.frombuffer(held[: size * len(parts)], np.uint8)
        content = np.broadcast_to(rows, (int(active.sum()), len(rows)))
    else:
        content = _read(cta, instruction, source, active, size * len(parts))
    for index, part in enumerate(parts):
        own = np.ascontiguousarray(content[:, index * size : (index + 1) * size])
        bits = np.zeros(cta.threads, UNSIGNED[size])
        bits[active] = own.view(UNSIGNED[size]).reshape(-1)
        cta.set_numbers(part, typed(bits, kind), kind, active)


def _read(cta: Cta, instruction: Instruction, source: Any, active: Any, count: int) -> Any:
    space = _space(instruction)
    if space == "shared":
        return cta.shared.load(cta.addresses(source, 4)[active], count, cta.warps[active])
    if space == "global":
        addresses = cta.addresses(source, 8)[active].astype(np.uint64)
        return cta.tensors.load(addresses, count)
    raise NotImplementedError(f"memory of the space {space}")


def _store(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, source = instruction.operands[:2]
    size = bytes_of(instruction.kind)
    columns = [cta.bits(part, size)[active] for part in _parts(source)]
    content = np.concatenate(
        [np.ascontiguousarray(c).view(np.uint8).reshape(-1, size) for c in columns], 1
    )
    space = _space(instruction)
    if space == "shared":
        cta.shared.store(cta.addresses(to, 4)[active], content, cta.warps[active])
    elif space == "global":
        cta.tensors.store(cta.addresses(to, 8)[active].astype(np.uint64), content)
    else:
        raise NotImplementedError(f"memory of the space {space}")


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
    count = len(_parts(to))
    lanes = active & matrix_row_lanes(count, cta.threads)
    rows = np.zeros((cta.threads, 16), np.uint8)
    rows[lanes] = cta.shared.load(cta.addresses(source, 4)[lanes], 16, cta.warps[lanes])
    found = matrix_rows(rows, count, transposed="trans" in instruction.marks)
    for part, bits in zip(_parts(to), found, strict=True):
        cta.set_bits(part, bits, active)


def _multiply(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, a, b, total = instruction.operands
    _whole_warps(active)
    _, _, shape, *order, out, left, right, summed = instruction.marks
    if order != ["row", "col"] or (out, summed) != ("f32", "f32") or left != right:
        raise NotImplementedError("a product of other types")
    sides = [[cta.bits(part, 4) for part in _parts(side)] for side in (a, b)]
    sums = [cta.numbers(part, "f32") for part in _parts(total)]
    found = products(shape, left, sides[0], sides[1], sums)
    for part, numbers in zip(_parts(to), found, strict=True):
        cta.set_bits(part, bits_of(numbers, "f32"), active)


def _whole_warps(active: Any) -> None:
    by_warp = active.reshape(-1, 32)
    assert (by_warp.all(1) == by_warp.any(1)).all(), "not all threads of a warp take part"


def _atomic(cta: Cta, instruction: Instruction, active: Any) -> None:
    """One thread after the other."""
    how, kind = instruction.marks[-2:]
    if instruction.op == "red":
        to, (where, *sources) = None, instruction.operands
    else:
        to, where, *sources = instruction.operands
    size = bytes_of(kind)
    addresses = cta.addresses(where, 8).astype(np.uint64)
    numbers = [cta.numbers(source, kind) for source in sources]
    before = np.zeros(cta.threads, UNSIGNED[size])
    for thread in np.flatnonzero(active):
        at = addresses[thread : thread + 1]
        held = np.ascontiguousarray(cta.tensors.load(at, size)).view(UNSIGNED[size]).reshape(-1)
        before[thread] = held[0]
        found = ATOMICS[how](typed(held, kind), *(each[thread : thread + 1] for each in numbers))
        cta.tensors.store(at, bits_of(found, kind).view(np.uint8).reshape(1, size))
    if to is not None:
        cta.set_bits(to, before, active)


ATOMICS: dict[str, Any] = {
    "add": np.add, "max": np.maximum, "min": np.minimum, "exch": lambda held, new: new,
    "and": np.bitwise_and, "or": np.bitwise_or,
    "cas": lambda held, wanted, new: np.where(held == wanted, new, held),
}  # fmt: skip


def _copy(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``cp.async``, of single threads."""
    marks = instruction.marks
    if marks[1] == "bulk":
        hopper.copy_of_box(cta, instruction, active)
    elif marks[1] == "commit_group":
        cta.copies.commit()
    elif marks[1] in ("wait_group", "wait_all"):
        pending = instruction.operands[0].bits if instruction.operands else 0  # type: ignore[union-attr]
        for copy in cta.copies.wait(pending):
            cta.shared.arrive(copy, cta.tensors)
    elif marks[1] in ("ca", "cg"):
        to, source, size, *taken = instruction.operands
        assert isinstance(size, Number)
        own = cta.bits(taken[0], 4)[active] if taken else np.full(int(active.sum()), size.bits)
        copy = Copy(
            cta.addresses(source, 8)[active].astype(np.uint64), cta.addresses(to, 4)[active],
            size.bits, own.astype(np.int64), cta.warps[active],
        )  # fmt: skip
        cta.shared.send(copy)
        cta.copies.add(copy)
    else:
        raise NotImplementedError("a copy that is not emulated")


def _address_moved(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``cvta``: addresses of tensors are the same everywhere."""
    if _space(instruction) not in ("global", "param"):
        raise NotImplementedError("generic addresses of other memory")
    to, source = instruction.operands
    cta.set_bits(to, cta.bits(source, 8), active)


SPECIAL: dict[str, Any] = {
    "ld": _load, "st": _store, "bra": _branch, "bar": _barrier, "barrier": _barrier,
    "ret": _end, "exit": _end, "shfl": _shuffle, "redux": _reduce, "ldmatrix": _load_matrix, "mma": _multiply,
    "atom": _atomic, "red": _atomic, "cp": _copy, "cvta": _address_moved, **hopper.STEPS,
}  # fmt: skip
