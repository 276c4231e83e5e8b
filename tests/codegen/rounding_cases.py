"""Epilogues against eager itself, to the bit, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from overlapc.codegen import GemmSpec, Kernel, build
from overlapc.codegen.epilogue import Dtype, Epilogue, Input
from overlapc.codegen.function import function_of
from overlapc.codegen.kernel import name_of
from tests.codegen.epilogue_cases import MM, call, given, value
from tests.codegen.gemm_cases import mutant

aten: Any = torch.ops.aten


def run(
    chain: Epilogue, a: torch.Tensor, inputs: list[torch.Tensor], mutate: tuple[str, str] | None
) -> torch.Tensor:
    """The chain of ``a`` times the identity, which is ``a``: its product has no error."""
    dtype = name_of(a)
    out = function_of(chain, dtype).values[-1].dtype
    size = 128 if a.numel() > 2**14 else 16
    spec = GemmSpec(dtype, out, size, size, size, b="row", signals=False, epilogue=str(chain))
    kernel: Kernel = mutant(build(spec), mutate) if mutate else build(spec)
    n = a.shape[1]
    b = torch.eye(n).to(a.dtype)
    c = torch.full(a.shape, torch.nan).to(getattr(torch, out))
    kernel(a, b, c, ctas=2, inputs=inputs)
    return c


def differences(dtype: str, mutate: tuple[str, str] | None = None) -> int:
    """In how many elements a chain of sums and products differs from eager."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    a = torch.randn(48, 40).to(kind)
    residual, scale = torch.randn(48, 40).to(kind), torch.randn(40)
    chain = Epilogue(
        (Input("matrix", dtype), Input("vector", "float32")),
        (
            MM,
            call("aten.mul.Scalar", value(0), 1.1),
            call("aten.add.Tensor", value(1), given(0)),
            call("aten.mul.Tensor", value(2), value(1)),
            call("aten.mul.Tensor", value(3), given(1)),
            call("prims.convert_element_type.default", value(4), Dtype(dtype)),
            call("aten.sub.Tensor", value(5), given(0)),
            call("aten.div.Tensor", value(6), given(0)),
        ),
    )
    if mutate:
        mutate = (mutate[0].replace("1.1 * v0", "v0 * 1.1"), mutate[1])
    ours = run(chain, a, [residual, scale], mutate)
    scaled = aten.mul.Scalar(a, 1.1)
    eager = ((scaled + residual) * scaled * scale).to(kind)
    eager = (eager - residual) / residual
    assert ours.dtype == eager.dtype
    return int((ours != eager).sum())


def fp8_differences(dtype: str, mutate: tuple[str, str] | None = None) -> int:
    """In how many of all float16 numbers the cast to fp8 differs from eager's."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    # Minus zero is lost where the product is added to zero.
    a = torch.where(numbers.isfinite(), numbers + 0.0, 0.0).view(256, 256)
    chain = Epilogue((), (MM, call("prims.convert_element_type.default", value(0), Dtype(dtype))))
    ours = run(chain, a, [], mutate)
    eager = a.to(getattr(torch, dtype))
    same = ours.view(torch.uint8) == eager.view(torch.uint8)
    both_nan = ours.float().isnan() & eager.float().isnan()
    return int((~same & ~both_nan).sum())


SPECIAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "aten.relu.default": torch.relu,
    "aten.sign.default": torch.sign,
    "aten.round.default": torch.round,
    "aten.trunc.default": torch.trunc,
    "aten.floor.default": torch.floor,
    "aten.tanh.default": torch.tanh,
    "aten.expm1.default": torch.expm1,
    "aten.log1p.default": torch.log1p,
    "aten.softplus.default": torch.nn.functional.softplus,
    "aten.sigmoid.default": torch.sigmoid,
    "aten.isnan.default": torch.isnan,
    "aten.isinf.default": torch.isinf,
    "aten.reciprocal.default": torch.reciprocal,
}


def special_values() -> list[str]:
    """Ops that give other zeros, infinities, NaN, halves or tiny numbers than eager."""
    # Not -0: it is lost where the product is added to zero.
    numbers = [0.0, torch.inf, -torch.inf, torch.nan, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.3]
    numbers += [-0.3, 1e-6, -1e-6, 0.499, -0.501, 100.0, -100.0, 1e4, -1e4, 20.5, 3.0]
    a = torch.tensor(numbers)[:, None]
    wrong = []
    for op, eager in SPECIAL.items():
        calls = [MM, call(op, value(0))]
        if eager(a).dtype == torch.bool:
            calls.append(call("prims.convert_element_type.default", value(1), Dtype("float32")))
        ours = run(Epilogue((), tuple(calls)), a, [], None)
        expected = eager(a).float()
        if not torch.allclose(ours, expected, rtol=3e-7, atol=0, equal_nan=True):
            wrong.append(f"{op}: {ours.flatten().tolist()} for {expected.flatten().tolist()}")
    y, x = (part.flatten()[:, None] for part in torch.meshgrid(a[:, 0], a[:, 0], indexing="ij"))
    chain = Epilogue((Input("matrix", "float32"),), (MM, call("aten.atan2.default", value(0),
                                                              given(0))))  # fmt: skip
    ours = run(chain, y.contiguous(), [x], None)
    if not torch.allclose(ours, torch.atan2(y, x), rtol=4e-7, atol=1e-30, equal_nan=True):
        wrong.append("aten.atan2.default")
    return wrong
