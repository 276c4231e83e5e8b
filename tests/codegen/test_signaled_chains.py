"""Which programs of chains one kernel serves, and that it computes them."""

from __future__ import annotations

import pytest
import torch

from overlapc.codegen.epilogue import Input
from overlapc.errors import KernelError
from overlapc.planning.target import Target
from overlapc.runtime.programs.program import Program, Step
from overlapc.runtime.signaled.kernels import kernel_spec_of, lowered_chain
from tests.codegen.signaled_cases import GATED, chain, operand, operands, value


def test_a_chain_is_computed_and_sent_band_by_band(interpreted):
    assert interpreted("signaled_cases.run", (128, 50), 72, 40) <= 1


def test_the_kernel_of_a_chain():
    given = operands(64, 256, 128)
    spec, _ = kernel_spec_of(chain(GATED), Target.load("h100-nvlink"), given)
    assert (spec.loads, spec.out, spec.block_n) == ("descriptors", "float32", 256)
    assert spec.chain.inputs == (Input("vector", "bfloat16"), Input("matrix", "bfloat16"))
    # A tensor that begins in the middle of 16 bytes is read by pointers.
    odd = [*given]
    odd[1] = torch.randn(64 * 128 + 1).bfloat16()[1:].view(64, 128)
    spec, _ = kernel_spec_of(chain(GATED), Target.load("h100-nvlink"), odd)
    assert spec.loads == "pointers"


def test_other_rows_are_lowered_alike():
    first, second = (lowered_chain(chain(GATED), operands(m, 72, 40)) for m in (64, 3))
    assert first is second


MM = Step("aten.mm.default", (operand(0), operand(1)))


def program(*steps: Step, modes: tuple[str, ...] = ("rows", "whole", "rows"), **fields) -> Program:
    return Program(modes, steps, fields.pop("sent", value(len(steps) - 1)), **fields)


RESIDUAL = Step("aten.add.Tensor", (value(0), operand(2)))
REFUSED = {
    "a scan": (program(MM, Step("aten.cumsum.default", (value(0), 1))), "pointwise ops"),
    "a second GEMM": (program(MM, Step("aten.mm.default", (value(0), operand(1)))), "one GEMM"),
    "no GEMM": (program(Step("aten.relu.default", (operand(0),)), modes=("rows",)), "no GEMM"),
    "a kept value": (program(MM, RESIDUAL, kept=(value(0),)), "beside what is sent"),
    "offsets": (program(MM, RESIDUAL, modes=("rows", "whole", "offsets")), "no kernel reads"),
}


@pytest.mark.parametrize(("refused", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_left_to_the_library_is_said(refused, reason):
    given = [torch.randn(8, 8), torch.randn(8, 8), torch.randn(8, 8)][: len(refused.modes)]
    with pytest.raises(KernelError, match=reason):
        lowered_chain(chain(refused), given)


def test_an_input_on_another_device_is_not_read():
    given = [torch.randn(8, 8, device="meta"), torch.randn(8, 8, device="meta"), torch.randn(())]
    refused = program(MM, RESIDUAL, modes=("rows", "whole", "whole"))
    with pytest.raises(KernelError, match="no kernel reads"):
        lowered_chain(chain(refused), given)


@pytest.mark.parametrize("kind", ["gemm_reduce_scatter", "gemm_all_to_all"])
def test_every_producer_has_the_same_kernel(kind):
    given = operands(64, 256, 128)
    kinds = (chain(GATED, kind), chain(GATED))
    first, second = (kernel_spec_of(it, Target.load("h100-nvlink"), given) for it in kinds)
    assert first == second


def test_a_consumer_has_nothing_to_signal():
    consumer = chain(program(MM, sent=None, kept=(value(0),)), "all_gather_gemm")
    with pytest.raises(KernelError, match="comes after the collective"):
        lowered_chain(consumer, [torch.randn(8, 8)] * 3)


@pytest.mark.parametrize(
    ("mode", "shape", "expected"),
    [
        ("rows", (4, 8), "matrix"), ("rows", (4, 1), "column"), ("whole", (8,), "vector"),
        ("whole", (1, 8), "vector"), ("whole", (1,), "one"), ("whole", (), "scalar"),
    ],
)  # fmt: skip
def test_shapes_of_inputs(mode, shape, expected):
    given = [torch.randn(4, 16), torch.randn(16, 8), torch.randn(shape)]
    lowered = lowered_chain(chain(program(MM, RESIDUAL, modes=("rows", "whole", mode))), given)
    assert lowered.epilogue.inputs == (Input(expected, "float32"),)
