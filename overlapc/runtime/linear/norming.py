"""An RMSNorm before a linear layer, as a program spells it, and what is left where a kernel norms.

``((x / root) * gain) @ w`` is ``((x * gain) @ w) / root``: the root is one number a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from overlapc.runtime.linear.parts import refs_of
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step, mapped

GEMMS = {"aten.mm.default": 0, "aten.addmm.default": 1}
"""Where each has its rows."""
CAST, MUL = "prims.convert_element_type.default", "aten.mul.Tensor"
ADDS = ("aten.add.Tensor", "aten.add.Scalar")
EXACT = frozenset({torch.float32, torch.bfloat16})
"""Dtypes that casts on the way may have: others overflow where float32 does not."""
NORMED = EXACT | {torch.float16}
"""... but for rows that are normed and nothing else: those are not above the root of k."""


@dataclass(frozen=True)
class Norm:
    """``x / sqrt(mean(x * x) + eps) * (gain + shift)``, of every row."""

    x: int
    """Operand [rows, k]."""
    eps: float
    gain: int | None = None
    """Operand [k]."""
    shift: float = 0.0
    """Added to the gain: Gemma's are held less one."""


@lru_cache(maxsize=1024)
def unnormed(program: Program) -> tuple[Program, Norm | None]:
    """Return a program whose GEMMs take rows as they are before a norm, and the norm they take.

    The program itself and None, where its GEMMs do not all take rows of one RMSNorm that nothing
    else takes.
    """
    rows = {step.args[GEMMS[step.op]] for step in program.steps if step.op in GEMMS}
    (normed, *others) = rows
    if others or not isinstance(normed, Ref) or normed.is_operand:
        return program, None
    norm, mine = _Reader(program).read(normed)
    kept = [index for index in range(len(program.steps)) if index not in mine]
    taken = [ref for index in kept for ref in refs_of(program.steps[index])]
    outside = [ref for ref in (*taken, *program.kept) if not ref.is_operand and ref.index in mine]
    products = [step for step in program.steps if step.op in GEMMS]
    if norm is None or outside != [normed] * len(products):
        return program, None

    def place(ref: Ref) -> Ref:
        if ref == normed:
            return Ref("operand", norm.x)
        return ref if ref.is_operand else Ref("value", kept.index(ref.index))

    steps = mapped([program.steps[index] for index in kept], place)
    return replace(program, steps=steps, kept=tuple(map(place, program.kept))), norm


def in_front(program: Program, steps: Sequence[Step], rows: int, more: int) -> Program:
    """Put the steps of a norm in front of a program, whose GEMMs take what the last gives in place
    of operand ``rows``; the steps take that, and as many operands more, behind the program's."""
    first = len(steps)

    def place(ref: Ref) -> Ref:
        if ref.is_operand:
            return Ref("value", first - 1) if ref.index == rows else ref
        return Ref("value", ref.index + first)

    whole = (*steps, *mapped(program.steps, place))
    modes = program.modes + (WHOLE,) * more
    return Program(modes, whole, None, tuple(map(place, program.kept)))


class _Reader:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.mine = set[int]()
        """The steps of what was read."""

    def read(self, normed: Ref) -> tuple[Norm | None, set[int]]:
        """The norm that gives a value, and its steps."""
        gain, shift, ref, casts = None, 0.0, normed, set[Any]()
        while True:
            if (cast := self._step(ref, CAST)) is not None:
                casts.add(cast.args[1])
                ref = cast.args[0]
                continue
            step = self._step(ref, MUL)
            if step is None:
                return None, self.mine
            one, two = step.args
            if (norm := self._scaled(one, two) or self._scaled(two, one)) is not None:
                fits = casts <= (EXACT if gain is not None else NORMED)
                return replace(norm, gain=gain, shift=shift) if fits else None, self.mine
            gains = {arg: its for arg in (one, two) if (its := self._gain(arg)) is not None}
            if len(gains) != 1 or gain is not None:
                return None, self.mine
            ((arg, (gain, shift)),) = gains.items()
            ref = two if arg == one else one

    def _gain(self, ref: Any) -> tuple[int, float] | None:
        """A gain's operand, and what is added to it."""
        shift, passed = 0.0, []
        if (add := self._peek(ref, *ADDS)) is not None and self._fits(add) and not add.kwargs:
            passed.append(ref.index)
            ref, shift = add.args
        if (cast := self._peek(ref, CAST)) is not None and cast.args[1] == torch.float32:
            passed.append(ref.index)
            ref, _ = cast.args
        if self._mode(ref) != WHOLE:
            return None
        self.mine.update(passed)
        return ref.index, shift

    def _scaled(self, wide: Any, root: Any) -> Norm | None:
        """``wide`` over the root of the mean of its squares."""
        eps = 0.0
        for ops in (("aten.rsqrt.default",), ADDS, ("aten.mean.dim",), ("aten.pow.Tensor_Scalar",)):
            step = self._step(root, *ops)
            if step is None or step.kwargs or not self._fits(step):
                return None
            eps = step.args[1] if ops == ADDS else eps
            root = step.args[0]
        cast = self._step(wide, CAST)
        source = wide if cast is None else cast.args[0]
        is_wide = cast is None or cast.args[1] == torch.float32
        if root != wide or not is_wide or self._mode(source) != ROWS:
            return None
        return Norm(source.index, eps)

    @staticmethod
    def _fits(step: Step) -> bool:
        match step.op, step.args:
            case "aten.mean.dim", (_, (1 | -1,), True):
                return True
            case (("aten.add.Tensor" | "aten.add.Scalar"), (_, float())):
                return True
            case "aten.pow.Tensor_Scalar", (_, 2):
                return True
        return step.op == "aten.rsqrt.default"

    def _step(self, ref: Any, *ops: str) -> Step | None:
        """The call of one of these that gives a value; it is taken to be of the norm."""
        step = self._peek(ref, *ops)
        if step is not None:
            self.mine.add(ref.index)
        return step

    def _peek(self, ref: Any, *ops: str) -> Step | None:
        if not isinstance(ref, Ref) or ref.is_operand:
            return None
        step = self.program.steps[ref.index]
        return step if step.op in ops else None

    def _mode(self, ref: Any) -> str:
        return self.program.modes[ref.index] if isinstance(ref, Ref) and ref.is_operand else ""
