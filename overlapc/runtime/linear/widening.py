"""Weights in a narrower dtype: what widens and scales them, and what is left where a load does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch

from overlapc.errors import KernelError
from overlapc.runtime.programs.program import WHOLE, Program, Ref, Step, mapped

CAST, TURN = "prims.convert_element_type.default", "aten.permute.default"
SUBTRACT, SCALE, EXPAND = "aten.sub.Tensor", "aten.mul.Tensor", "aten.expand.default"
WIDENING = (None, torch.float32)
"""Casts of scales that round none of them."""
WIDE = (torch.float32, torch.bfloat16, torch.float16)
"""Casts of narrow weights that round none of them."""
INTEGERS = (torch.int8, torch.uint8)
"""Of weights that have zero points; also cast to int32, as which graphs may subtract them."""
SHAPES = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")


@dataclass(frozen=True)
class Beside:
    """What meets a weight element by element: its scales, or its zero points."""

    operand: int
    shape: tuple[int, ...] | None
    """The shape in which it meets the weight, with a dimension in groups; None as that lies."""
    is_turned: bool
    """Whether the weight is transposed then."""

    def by_column(
        self, given: Sequence[torch.Tensor], weight: torch.Tensor, *, is_turned: bool
    ) -> torch.Tensor:
        """It as ``[groups of k, n]`` of a weight that the GEMM reads transposed or not, a view.

        KernelError where no kernel reads such.
        """
        its = given[self.operand]
        if its.device != weight.device:
            raise _error("its scale lies on another device")
        own = tuple(weight.t().shape if self.is_turned else weight.shape)
        shape = own if self.shape is None else _sizes(self.shape, weight.numel())
        if its.dim() > len(shape):
            raise _error(f"its scale has {its.dim()} dimensions")
        its = its[(None,) * (len(shape) - its.dim())]
        if shape != own:
            its = _of_groups(its, shape, own)
        its = its.t() if is_turned != self.is_turned else its
        rows, columns = its.shape
        k, n = weight.t().shape if is_turned else weight.shape
        if rows not in (1, k) and k % rows:
            raise _error(f"it has {rows} groups of scales along {k}")
        if columns not in (1, n):
            raise _error("several columns share a scale")
        return its.expand(rows, n)


@dataclass(frozen=True)
class Held:
    """How a weight lies in memory, and what is done to it before it is multiplied."""

    operand: int
    is_turned: bool = False
    """The GEMM reads it transposed."""
    zero: Beside | None = None
    """What is subtracted first."""
    casts: tuple[torch.dtype | None, torch.dtype | None] = (None, None)
    """Of weight and zero points before that."""
    is_cast_between: bool = False
    """Whether the difference is cast before it is scaled."""
    scale: Beside | None = None
    """What it is multiplied by then."""
    shape: tuple[int, ...] | None = None
    """With a dimension in groups, until that is whole again."""
    cast: torch.dtype | None = None
    """The dtype of the last cast."""
    repeated: tuple[int, ...] | None = None
    """Of what meets a weight: the shape in which each element is there for every k of its group."""

    def scales(self, given: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Its scales as ``[groups of k, n]``, a view; None where it has none.

        KernelError where no kernel multiplies by such.
        """
        if self.scale is None:
            return None
        return self.scale.by_column(given, given[self.operand], is_turned=self.is_turned)

    def zeros(self, given: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Its zero points, in as many groups as its scales; None where it has none.

        KernelError where no kernel subtracts such.
        """
        if self.zero is None:
            return None
        weight, scales = given[self.operand], self.scales(given)
        zeros = self.zero.by_column(given, weight, is_turned=self.is_turned)
        if not self._is_difference_known(weight.dtype, zeros.dtype):
            raise _error(f"zero points of {zeros.dtype} are subtracted from {weight.dtype}")
        if scales is None or len(scales) != len(zeros):
            raise _error("it has no scale for each zero point")
        return zeros

    def _is_difference_known(self, weight: torch.dtype, zeros: torch.dtype) -> bool:
        """Whether the difference is exact, or rounded to the dtype of the zero points, and is
        cast to no narrower one then."""
        if weight not in INTEGERS:
            return False
        if zeros == weight:  # two that are not cast wrap around
            return self.casts != (None, None)
        of_zeros = all(cast in (None, zeros) for cast in self.casts)
        return zeros in WIDE and of_zeros and not self.is_cast_between


def _of_groups(its: torch.Tensor, shape: tuple[int, ...], own: tuple[int, ...]) -> torch.Tensor:
    """Scales of a matrix of which one dimension was split in two, as of a matrix of groups."""
    wholes = [(*shape[:d], prod(shape[d : d + 2]), *shape[d + 2 :]) for d in (0, 1)]
    at = wholes.index(own) if own in wholes else None
    if at is None or its.shape[at + 1] != 1:
        raise _error(f"it is scaled as {list(shape)} by {list(its.shape)}")
    return its.squeeze(at + 1)


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
        its = self._of(weight)
        return its.scales(given) if its else None

    def zeros(self, given: Sequence[torch.Tensor], weight: int) -> torch.Tensor | None:
        """Its zero points, likewise."""
        its = self._of(weight)
        return its.zeros(given) if its else None

    def beside(self, weight: int) -> list[int]:
        """Which operands are the scales and the zero points of a weight, as far as it has any."""
        its = self._of(weight)
        found = (its.scale, its.zero) if its else ()
        return [one.operand for one in found if one is not None]

    def _of(self, weight: int) -> Held | None:
        return next((one for one in self.held if one.operand == weight), None)


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
    beside = {its.operand for one in held for its in (one.zero, one.scale) if its}
    weights = {one.operand: one for one in held if one.operand not in beside}
    if any(one.shape or one.repeated for one in weights.values()):
        return Loaded(program, ())
    return Loaded(whole, tuple(weights.values()))


def _held(step: Step, values: Sequence[Held], modes: Sequence[str]) -> Held | None:
    """What a call makes of a weight, or of what meets it; None where it is none of those calls."""
    its = [_whole(arg, values, modes) for arg in step.args if isinstance(arg, Ref)]
    match step.op, its:
        case (op, [Held() as one]) if op == CAST and step.args[1] in (*WIDE, torch.int32):
            is_between = one.is_cast_between or (one.zero is not None and one.scale is None)
            return replace(one, cast=step.args[1], is_cast_between=is_between)
        case (op, [Held() as one]) if op == TURN and len(step.args[1]) == 2:
            return replace(one, is_turned=one.is_turned != (step.args[1][0] % 2 == 1))
        case (op, [Held() as one]) if op in SHAPES:
            return _regrouped(one, step.args[1])
        case (op, [Held() as one]) if op == EXPAND and one == Held(one.operand):
            shape = tuple(step.args[1])
            return replace(one, shape=shape, repeated=shape) if len(shape) == 3 else None
        case (op, [Held() as one, Held() as other]) if op == SUBTRACT and not step.kwargs:
            beside = _beside(one, other)
            is_first = one.zero is None and one.scale is None
            casts = one.cast, other.cast
            return replace(one, zero=beside, casts=casts) if beside and is_first else None
        case (op, [Held() as one, Held() as other]) if op == SCALE and one.scale is None:
            beside = _beside(one, other) if other.cast in WIDENING else None
            return replace(one, scale=beside) if beside else None
    return None


def _whole(ref: Ref, values: Sequence[Held], modes: Sequence[str]) -> Held | None:
    if not ref.is_operand:
        return values[ref.index] if ref.index < len(values) else None
    return Held(ref.index) if modes[ref.index] == WHOLE else None


def _beside(weight: Held, its: Held) -> Beside | None:
    """What meets a weight, perhaps widened before, or repeated for every k of a group."""
    is_split_twice = weight.shape is not None and its.repeated is not None
    if its.is_turned or its.zero or its.scale or its.shape or is_split_twice:
        return None
    return Beside(its.operand, weight.shape or its.repeated, weight.is_turned)


def _regrouped(one: Held, shape: Any) -> Held | None:
    """Split in groups before something meets it, and whole again after that."""
    if len(shape) == 3:
        is_whole = one.shape is None and one.scale is None and not one.is_turned
        return replace(one, shape=tuple(shape)) if is_whole else None
    return replace(one, shape=None) if one.scale or one.repeated else None
