"""Weights in a narrower dtype: what widens and scales them, and what is left where a load does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch

from overlapc.errors import KernelError
from overlapc.runtime.program import WHOLE, Program, Ref, Step, mapped

CAST, TURN, SCALE = "prims.convert_element_type.default", "aten.permute.default", "aten.mul.Tensor"
SHAPES = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")


@dataclass(frozen=True)
class Held:
    """How a weight lies in memory, and what is done to it before it is multiplied."""

    operand: int
    is_turned: bool = False
    """The GEMM reads it transposed."""
    scale: int | None = None
    """The operand that it is multiplied by, element by element."""
    scaled_as: tuple[int, ...] | None = None
    """The shape in which it is, with a dimension in groups; None as it lies."""
    is_scaled_turned: bool = False
    """Whether it is transposed when it is scaled."""

    def scales(self, given: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Its scales as ``[groups of k, n]``, a view; None where it has none.

        KernelError where no kernel multiplies by such.
        """
        if self.scale is None:
            return None
        weight, scale = given[self.operand], given[self.scale]
        if scale.device != weight.device:
            raise _error("its scale lies on another device")
        own = tuple(weight.t().shape if self.is_scaled_turned else weight.shape)
        shape = own if self.scaled_as is None else _sizes(self.scaled_as, weight.numel())
        if scale.dim() > len(shape):
            raise _error(f"its scale has {scale.dim()} dimensions")
        scale = scale[(None,) * (len(shape) - scale.dim())]
        if shape != own:
            scale = _of_groups(scale, shape, own)
        rows, columns = scale.t().shape if self._turns_scale else scale.shape
        scale = scale.t() if self._turns_scale else scale
        k, n = weight.t().shape if self.is_turned else weight.shape
        if rows not in (1, k) and k % rows:
            raise _error(f"it has {rows} groups of scales along {k}")
        if columns not in (1, n):
            raise _error("several columns share a scale")
        return scale.expand(rows, n)

    @property
    def _turns_scale(self) -> bool:
        return self.is_turned != self.is_scaled_turned


def _of_groups(scale: torch.Tensor, shape: tuple[int, ...], own: tuple[int, ...]) -> torch.Tensor:
    """Scales of a matrix of which one dimension was split in two, as of a matrix of groups."""
    wholes = [(*shape[:d], prod(shape[d : d + 2]), *shape[d + 2 :]) for d in (0, 1)]
    at = wholes.index(own) if own in wholes else None
    if at is None or scale.shape[at + 1] != 1:
        raise _error(f"it is scaled as {list(shape)} by {list(scale.shape)}")
    return scale.squeeze(at + 1)


def _sizes(shape: tuple[int, ...], elements: int) -> tuple[int, ...]:
    rest = prod(size for size in shape if size != -1)
    return tuple(elements // max(rest, 1) if size == -1 else size for size in shape)


def _error(what: str) -> KernelError:
    return KernelError(
        f"No kernel loads such a weight: {what}.",
        where="the choice of a generated kernel",
        remedy="none is needed: the library computes what would be its",
    )


@dataclass(frozen=True)
class Loaded:
    """A program whose GEMMs read weights as they are held."""

    program: Program
    """Without the calls that widen, scale and transpose them."""
    held: tuple[Held, ...]
    """Of those weights."""

    def operands(self, given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What it takes, from what the whole program is given."""
        turned = {one.operand for one in self.held if one.is_turned}
        if not turned:
            return given
        return [one.t() if index in turned else one for index, one in enumerate(given)]

    def scales(self, given: Sequence[torch.Tensor], weight: int) -> torch.Tensor | None:
        """The scales of a weight of ``operands``, as ``[groups of k, n]``; see ``Held``."""
        its = next((one for one in self.held if one.operand == weight), None)
        return its.scales(given) if its else None


def widened(program: Program, calls: Mapping[int, Sequence[Step]], operands: int) -> Program:
    """Put calls in front of a program of so many operands, the last of which they alone take: of
    each operand in question those whose last value the program's GEMMs read in its place.

    A call's references to values count from the first of its operand's.
    """
    steps: list[Step] = []
    wide: dict[int, Ref] = {}
    for operand, its in calls.items():
        steps += mapped(its, _moved(len(steps)))
        wide[operand] = Ref("value", len(steps) - 1)
    moved = _moved(len(steps))

    def place(ref: Ref) -> Ref:
        return wide.get(ref.index, ref) if ref.is_operand else moved(ref)

    modes = program.modes + (WHOLE,) * (operands - len(program.modes))
    steps += mapped(program.steps, place)
    return Program(modes, tuple(steps), None, tuple(place(ref) for ref in program.kept))


def _moved(by: int) -> Callable[[Ref], Ref]:
    return lambda ref: ref if ref.is_operand else Ref("value", ref.index + by)


@lru_cache(maxsize=1024)
def loaded(program: Program) -> Loaded:
    """Leave out the calls at a program's beginning that widen, scale and transpose a weight."""
    held: list[Held] = []
    for step in program.steps:
        found = _held(step, held, program.modes)
        if found is None:
            break
        held.append(found)
    first = len(held)

    def place(ref: Ref) -> Ref:
        if ref.is_operand:
            return ref
        if ref.index < first:
            return Ref("operand", held[ref.index].operand)
        return Ref("value", ref.index - first)

    steps = mapped(program.steps[first:], place)
    kept = tuple(place(ref) for ref in program.kept)
    whole = replace(program, steps=steps, kept=kept)
    return Loaded(whole, tuple({one.operand: one for one in held}.values()))


def _held(step: Step, values: Sequence[Held], modes: Sequence[str]) -> Held | None:
    """What a call makes of a weight; None where it is none of those calls."""
    refs = [arg for arg in step.args if isinstance(arg, Ref)]
    its = [_weight(ref, values, modes) for ref in refs]
    match step.op, its:
        case (op, [Held() as one]) if op == CAST:
            return one
        case (op, [Held() as one]) if op == TURN and len(step.args[1]) == 2:
            return replace(one, is_turned=one.is_turned != (step.args[1][0] % 2 == 1))
        case (op, [Held() as one]) if op in SHAPES:
            return _regrouped(one, step.args[1])
        case (op, [Held() as one, _]) if op == SCALE and _may_scale(one, refs[1]):
            return replace(one, scale=refs[1].index, is_scaled_turned=one.is_turned)
        case (op, [_, Held() as one]) if op == SCALE and _may_scale(one, refs[0]):
            return replace(one, scale=refs[0].index, is_scaled_turned=one.is_turned)
    return None


def _weight(ref: Ref, values: Sequence[Held], modes: Sequence[str]) -> Held | None:
    if not ref.is_operand:
        return values[ref.index] if ref.index < len(values) else None
    return Held(ref.index) if modes[ref.index] == WHOLE else None


def _may_scale(one: Held, ref: Ref) -> bool:
    return one.scale is None and ref.is_operand


def _regrouped(one: Held, shape: Any) -> Held | None:
    """Split in groups before it is scaled, and whole again after that."""
    if one.scale is None:
        return replace(one, scaled_as=shape) if len(shape) == 3 and not one.is_turned else None
    return one if len(shape) == 2 else None
