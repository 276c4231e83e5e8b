"""Instructions that move numbers between registers and memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulated import hopper
from tests.emulated.assembly import Address, Instruction, Number, Symbol, Vector
from tests.emulated.memory import Copy
from tests.emulated.threads import Cta
from tests.emulated.values import UNSIGNED, bits_of, bytes_of, typed

SPACES = ("param", "global", "shared", "local", "const")
ATOMICS: dict[str, Any] = {
    "add": np.add, "max": np.maximum, "min": np.minimum, "exch": lambda held, new: new,
    "and": np.bitwise_and, "or": np.bitwise_or,
    "cas": lambda held, wanted, new: np.where(held == wanted, new, held),
}  # fmt: skip


def space_of(instruction: Instruction) -> str:
    found = [mark.partition("__")[0] for mark in instruction.marks]
    return next((mark for mark in found if mark in SPACES), "generic")


def parts_of(operand: Any) -> tuple[Any, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def load(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, source = instruction.operands[:2]
    parts, kind = parts_of(to), instruction.kind
    size = bytes_of(kind)
    if space_of(instruction) == "param":
        assert isinstance(source, Address)
        assert isinstance(source.base, Symbol)
        held = cta.launch.parameters[source.base.name][source.offset :]
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
    space = space_of(instruction)
    if space == "shared":
        return cta.shared.load(cta.addresses(source, 4)[active], count, cta.warps[active])
    if space == "global":
        addresses = cta.addresses(source, 8)[active].astype(np.uint64)
        return cta.launch.tensors.load(addresses, count)
    raise NotImplementedError(f"memory of the space {space}")


def store(cta: Cta, instruction: Instruction, active: Any) -> None:
    to, source = instruction.operands[:2]
    size = bytes_of(instruction.kind)
    columns = [cta.bits(part, size)[active] for part in parts_of(source)]
    content = np.concatenate(
        [np.ascontiguousarray(c).view(np.uint8).reshape(-1, size) for c in columns], 1
    )
    space = space_of(instruction)
    if space == "shared":
        cta.shared.store(cta.addresses(to, 4)[active], content, cta.warps[active])
    elif space == "global":
        cta.launch.tensors.store(cta.addresses(to, 8)[active].astype(np.uint64), content)
    else:
        raise NotImplementedError(f"memory of the space {space}")


def atomic(cta: Cta, instruction: Instruction, active: Any) -> None:
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
        held = (
            np.ascontiguousarray(cta.launch.tensors.load(at, size)).view(UNSIGNED[size]).reshape(-1)
        )
        before[thread] = held[0]
        found = ATOMICS[how](typed(held, kind), *(each[thread : thread + 1] for each in numbers))
        cta.launch.tensors.store(at, bits_of(found, kind).view(np.uint8).reshape(1, size))
    if to is not None:
        cta.set_bits(to, before, active)


def copy(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``cp.async``, of single threads."""
    marks = instruction.marks
    if marks[1] == "bulk":
        hopper.copy_of_box(cta, instruction, active)
    elif marks[1] == "commit_group":
        cta.copies.commit()
    elif marks[1] in ("wait_group", "wait_all"):
        pending = instruction.operands[0].bits if instruction.operands else 0  # type: ignore[union-attr]
        for copy in cta.copies.wait(pending):
            cta.shared.arrive(copy, cta.launch.tensors)
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


def address_moved(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``cvta``: addresses of tensors are the same everywhere."""
    if space_of(instruction) not in ("global", "param"):
        raise NotImplementedError("generic addresses of other memory")
    to, source = instruction.operands
    cta.set_bits(to, cta.bits(source, 8), active)


STEPS: dict[str, Any] = {
    "ld": load, "st": store, "atom": atomic, "red": atomic, "cp": copy, "cvta": address_moved,
}  # fmt: skip
