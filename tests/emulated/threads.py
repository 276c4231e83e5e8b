"""One CTA: its threads, each at an instruction of its own, of which those furthest behind go on.

So threads that took different ways meet again where the ways do, as a compiler lays them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.emulated.assembly import (
    Address,
    Instruction,
    Kernel,
    Number,
    Operand,
    Register,
    Symbol,
)
from tests.emulated.memory import BadAccess, Copies, Shared, Tensors
from tests.emulated.tensor_maps import Arrivals, TensorMap
from tests.emulated.values import UNSIGNED, Bits, bits_of, bytes_of, typed, widened
from tests.emulated.warps import LANES

SHARED_BASE = 0
"""Address of shared memory in its own space."""
PARAMETER_BASE = 1 << 60
"""Of the first parameter's; they are told from each other, no more."""
MOST_INSTRUCTIONS = 2_000_000
"""Of a CTA, beyond which it is taken to hang; chosen."""
RUNS, WAITS, WAITS_FOR_ARRIVALS, DONE = range(4)

Step = Callable[["Cta", Any], None]


@dataclass(frozen=True)
class Launch:
    """What all CTAs of a launch have in common."""

    kernel: Kernel
    steps: Sequence[Step]
    """What each instruction does."""
    grid: Sequence[int]
    shared_bytes: int
    tensors: Tensors
    parameters: dict[str, bytes]
    tensor_maps: dict[int, TensorMap]
    """By the address of the parameter that each is."""


class Cta:
    """The threads of one CTA and what they hold."""

    def __init__(self, launch: Launch, index: Sequence[int]) -> None:
        self.launch, self.kernel = launch, launch.kernel
        self.threads = self.kernel.threads
        self.shared = Shared(launch.shared_bytes)
        self.registers: dict[str, Bits] = {}
        self.lane = np.arange(self.threads)
        self.warps = self.lane // LANES
        self.copies = Copies()
        self.arrivals: dict[int, Arrivals] = {}
        self.products: list[list[Any]] = []
        """Of groups that nobody has waited for, what they read of shared memory."""
        self.open_product: list[Any] = []
        self.at = np.zeros(self.threads, np.int64)
        self.state = np.full(self.threads, RUNS)
        nothing = 0 * self.lane
        self.special = {
            "%tid.x": self.lane, "%tid.y": nothing, "%tid.z": nothing,
            "%ntid.x": nothing + self.threads,
            "%laneid": self.lane % LANES, "%warpid": self.warps,
        }  # fmt: skip
        for axis, own, count in zip("xyz", index, launch.grid, strict=True):
            self.special |= {f"%ctaid.{axis}": nothing + own, f"%nctaid.{axis}": nothing + count}

    def run(self) -> None:
        """To its end; raises where threads wait for others that never come."""
        done = 0
        while True:
            live = self.state == RUNS
            if not live.any():
                if (self.state == DONE).all():
                    return
                self._wake()
                continue
            at = int(self.at[live].min())
            active = live & (self.at == at)
            others = self.at[live & ~active]
            done += self._stretch(active, at, int(others.min()) if len(others) else None)
            if done > MOST_INSTRUCTIONS:
                raise BadAccess(f"{done} instructions, and no end")

    def _wake(self) -> None:
        """Let those go on that wait for each other."""
        if (self.state == WAITS_FOR_ARRIVALS).any():
            raise BadAccess("threads wait for what never arrives")
        self.state[self.state == WAITS] = RUNS
        self.shared.barrier()

    def _stretch(self, active: Any, at: int, until: int | None) -> int:
        """Let threads go on until they part, wait, end, or reach others."""
        begin, instructions = at, self.kernel.instructions
        while until is None or at < until:
            self.at[active] = at + 1
            instruction = instructions[at]
            try:
                self.launch.steps[at](self, active)
            except (BadAccess, NotImplementedError) as error:
                raise type(error)(f"{error} (at {instruction.text!r})") from None
            at += 1
            if instruction.op in ("bra", "bar", "barrier", "mbarrier", "ret", "exit"):
                break
        return at - begin

    def acting(self, instruction: Instruction, active: Any) -> Any:
        """Which of active threads an instruction is for."""
        if not instruction.guard:
            return active
        truth = self.bits(Register(instruction.guard), 1) != 0
        return active & (truth != instruction.negated)

    def bits(self, operand: Operand, size: int) -> Bits:
        """An operand's bits, so many bytes, of each thread."""
        if isinstance(operand, Register):
            if operand.name in self.special:
                return self.special[operand.name].astype(UNSIGNED[size])
            if operand.name not in self.registers:  # as half of a pair, of which one half is read
                return np.full(self.threads, (1 << 8 * size) - 1, UNSIGNED[size])
            return widened(self.registers[operand.name], size)
        if isinstance(operand, Number):
            number = operand.bits
        elif isinstance(operand, Symbol):
            number = self.address_of(operand.name)
        else:
            raise NotImplementedError(f"an operand {operand}")
        return np.full(self.threads, number & (1 << 8 * size) - 1, UNSIGNED[size])

    def address_of(self, name: str) -> int:
        if self.kernel.variables.get(name, ("",))[0] == "shared":
            return SHARED_BASE
        for index, (parameter, _) in enumerate(self.kernel.parameters):
            if parameter == name:
                return PARAMETER_BASE + index
        raise NotImplementedError(f"the address of {name}")

    def numbers(self, operand: Operand, kind: str) -> Any:
        return typed(self.bits(operand, bytes_of(kind)), kind)

    def set_numbers(self, operand: Operand, numbers: Any, kind: str, active: Any) -> None:
        """Write a register; integers with a sign keep it where the register is wider."""
        name = self._name(operand)
        if not name:
            return
        size = self.kernel.bytes_of(name)
        if kind[0] == "s" and size > bytes_of(kind):
            kind, numbers = f"s{8 * size}", numbers.astype(f"i{size}")
        self._set(name, widened(bits_of(numbers, kind), size), active)

    def set_bits(self, operand: Operand, bits: Bits, active: Any) -> None:
        if name := self._name(operand):
            self._set(name, widened(bits, self.kernel.bytes_of(name)), active)

    def _name(self, operand: Operand) -> str:
        if not isinstance(operand, Register):
            raise NotImplementedError(f"a result in {operand}")
        return "" if operand.name == "_" else operand.name

    def _set(self, name: str, bits: Bits, active: Any) -> None:
        bits = np.broadcast_to(bits, (self.threads,))
        before = self.registers.get(name)
        if active.all():
            self.registers[name] = np.array(bits)
        elif before is None:
            poison = np.full(self.threads, -1, f"i{bits.dtype.itemsize}").view(bits.dtype)
            self.registers[name] = np.where(active, bits, poison)
        else:
            self.registers[name] = np.where(active, bits, before)

    def addresses(self, operand: Operand, size: int) -> Any:
        """Where an address points to, of each thread."""
        assert isinstance(operand, Address), operand
        base = self.bits(operand.base, size).astype(np.int64)
        return base + operand.offset

    def jump(self, label: str, taken: Any) -> None:
        self.at[taken] = self.kernel.labels[label]
