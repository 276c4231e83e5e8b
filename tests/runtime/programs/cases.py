"""Programs of chains, each with random operands for so many units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from overlapc.runtime.programs.program import OFFSETS, ROWS, WHOLE, Program, Ref, Step

K, N, EXPERTS, CAPACITY = 32, 48, 3, 4


def operand(index: int) -> Ref:
    return Ref("operand", index)


def value(index: int) -> Ref:
    return Ref("value", index)


@dataclass(frozen=True)
class Case:
    """A program whose operand 0 has ``units`` rows; as a producer it sends its last value."""

    modes: tuple[str, ...]
    steps: tuple[Step, ...]
    operands: Callable[[int, torch.Generator], list[torch.Tensor]]
    """From units; as they are in the program's order."""
    kept: tuple[Ref, ...] = ()
    """Beside what is sent."""
    rounding: torch.dtype = torch.float32
    """The coarsest dtype on the way."""
    batched: bool = False
    """A unit has several rows of its GEMM."""

    @property
    def last(self) -> Ref:
        return value(len(self.steps) - 1)

    def producer(self) -> Program:
        return Program(self.modes, self.steps, self.last, self.kept)

    def consumer(self) -> Program:
        """Keeps the last value, what others keep, and the gathered tensor."""
        return Program(self.modes, self.steps, None, (self.last, *self.kept, operand(0)))


def _normal(generator: torch.Generator, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def _step(op: str, *args: object, **kwargs: object) -> Step:
    return Step(f"aten.{op}", tuple(args), tuple(kwargs.items()))


def _mm(units, generator):
    # The weight is a transposed view, as of a linear layer.
    return [_normal(generator, units, K), _normal(generator, N, K).t()]


def _strided(units, generator):
    return [_normal(generator, K, units).t(), _normal(generator, 2 * K, N)[::2]]


def _rich(units, generator):
    return [*_mm(units, generator), _normal(generator, units, N)]


def _sum(units, generator):
    return [*_mm(units, generator), *_mm(units, generator)]


def _many(units, generator):
    x, w = _mm(units, generator)
    return [x, w, _normal(generator, K, 5), _normal(generator, K, 1), _normal(generator, 5)]


FP8 = torch.float8_e4m3fn


def _fp8(units, generator):
    x = _normal(generator, units, K, dtype=FP8)
    return [x, _normal(generator, N, K, dtype=FP8).t(), torch.tensor(0.5), torch.tensor(1.5)]


def _fp8_rows(units, generator):
    x, w, *_ = _fp8(units, generator)
    scale, other = (torch.rand(shape, generator=generator) for shape in ((units, 1), (1, N)))
    return [x, w, scale + 0.5, other + 0.5]


def _grouped(units, generator):
    x = _normal(generator, units, K, dtype=torch.bfloat16)
    w = _normal(generator, EXPERTS, K, N, dtype=torch.bfloat16)
    # Ends that fall anywhere, one expert without rows included.
    ends = [units // 3, units // 3, units]
    return [x, w, torch.tensor(ends, dtype=torch.int32)]


def _bmm(units, generator):
    return [_normal(generator, units, CAPACITY, K), _normal(generator, units, K, N)]


def _baddbmm(units, generator):
    return [*_bmm(units, generator), _normal(generator, units, 1, N)]


a, b, c, d = map(operand, range(4))

CASES = {
    "mm": Case((ROWS, WHOLE), (_step("mm.default", a, b),), _mm),
    "strided": Case((ROWS, WHOLE), (_step("mm.default", a, b),), _strided),
    "addmm": Case(
        (ROWS, WHOLE, WHOLE),
        (_step("addmm.default", c, a, b),),
        lambda units, g: [*_mm(units, g), _normal(g, N)],
    ),
    "addmm_rows": Case((ROWS, WHOLE, ROWS), (_step("addmm.default", c, a, b),), _rich),
    "sum": Case(
        (ROWS, WHOLE, ROWS, WHOLE),
        (
            _step("mm.default", a, b),
            _step("mm.default", c, d),
            _step("add.Tensor", value(0), value(1)),
        ),
        _sum,
        kept=(value(1),),
    ),
    "rich": Case(
        (ROWS, WHOLE, ROWS),
        (
            _step("mm.default", a, b),
            _step("add.Tensor", value(0), c),
            _step("gelu.default", value(1)),
            Step("prims.convert_element_type.default", (value(2), torch.bfloat16)),
        ),
        _rich,
        kept=(value(1), value(3), value(0)),
        rounding=torch.bfloat16,
    ),
    "view": Case(
        (ROWS, WHOLE),
        (_step("mm.default", a, b), _step("view.default", value(0), (-1, 6, N // 6))),
        _mm,
        kept=(value(0),),
    ),
    "many": Case(
        (ROWS, WHOLE, WHOLE, WHOLE, WHOLE),
        (
            _step("mm.default", a, b),
            _step("mm.default", a, d),
            _step("addmm.default", operand(4), a, c, beta=0.5),
        ),
        _many,
        kept=(value(0), value(1)),
    ),
    "fp8": Case(
        (ROWS, WHOLE, WHOLE, WHOLE),
        (_step("_scaled_mm.default", a, b, c, d, None, None, torch.float32),),
        _fp8,
    ),
    "fp8_rows": Case(
        (ROWS, WHOLE, ROWS, WHOLE),
        (_step("_scaled_mm.default", a, b, c, d, None, None, torch.bfloat16),),
        _fp8_rows,
        rounding=torch.bfloat16,
    ),
    "grouped": Case(
        (ROWS, WHOLE, OFFSETS),
        (_step("_grouped_mm.default", a, b, c),),
        _grouped,
        kept=(value(0),),
        rounding=torch.bfloat16,
    ),
    "bmm": Case((ROWS, ROWS), (_step("bmm.default", a, b),), _bmm, batched=True),
    "baddbmm": Case(
        (ROWS, ROWS, ROWS),
        (_step("baddbmm.default", c, a, b, beta=1, alpha=2),),
        _baddbmm,
        kept=(value(0),),
        batched=True,
    ),
}

MM = replace(CASES["mm"]).producer()
