"""Programs of chains, and a staged GEMM of a kernel with inputs, in the interpreter."""

from __future__ import annotations

import torch

from overlapc.codegen import build
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.codegen.oracle import error_over_bound, random_input
from overlapc.codegen.tiles import spec_for
from overlapc.runtime.programs.program import Program, Ref, Step
from overlapc.runtime.signaled.kernels import lowered_chain
from overlapc.runtime.spec import ChainSpec
from tests.codegen.runner_cases import all_reduced, logged_device


def operand(index: int) -> Ref:
    """One operand of a program."""
    return Ref("operand", index)


def value(index: int) -> Ref:
    """The value of a step."""
    return Ref("value", index)


def chain(program: Program, kind: str = "gemm_all_reduce") -> ChainSpec:
    """A chain with this program."""
    return ChainSpec(kind, target="", options="", program=program)


GATED = Program(
    ("whole", "rows", "whole", "rows"),
    (
        Step("aten.addmm.default", (operand(0), operand(1), operand(2))),
        Step("aten.silu.default", (value(0),)),
        Step("aten.mul.Tensor", (value(1), operand(3))),
        Step("prims.convert_element_type.default", (value(2), torch.float32)),
    ),
    value(3),
)


def operands(m: int, n: int, k: int) -> list[torch.Tensor]:
    """Of ``GATED``."""
    shapes = [(n,), (m, k), (k, n), (m, n)]
    return [torch.randn(shape).bfloat16() for shape in shapes]


def run(rows: tuple[int, ...], n: int, k: int) -> float:
    """The error of ``GATED``, reduced over two equal ranks, over what is allowed."""
    correct_interpreter()
    torch.manual_seed(n)
    given = operands(sum(rows), n, k)
    lowered = lowered_chain(chain(GATED), given)
    a, b = given[lowered.a], given[lowered.b]
    spec = spec_for(a, b, architecture="sm_80", lowered=lowered)
    inputs = [given[index] for index in lowered.operands]
    assert [random_input(i, *given[3].shape, "cpu").shape for i in spec.chain.inputs] == [
        item.shape for item in inputs
    ]
    kernel = build(spec)

    def two_equal_ranks(band: torch.Tensor) -> None:
        assert band.is_contiguous()
        band.mul_(2)

    with logged_device([]):
        out = all_reduced(kernel, a, b, rows, two_equal_ranks, 2, inputs=inputs)
    return error_over_bound(spec, a, b, None, out / 2, inputs)
