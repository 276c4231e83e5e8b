"""What a generated GEMM must compute, and how far from it rounding may lead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overlapc.codegen.epilogue import Call, Dtype, Input, Ref
from overlapc.codegen.function import bind
from overlapc.codegen.pointwise import CASTS
from overlapc.codegen.products import GEMMS
from overlapc.codegen.promotion import FP8

if TYPE_CHECKING:
    from torch import Tensor

    from overlapc.codegen.linear.spec import LinearSpec
    from overlapc.codegen.spec import GemmSpec

    Spec = GemmSpec | LinearSpec

STEP_FLOAT32 = 2.0**-24
"""The largest relative error of one rounding to nearest."""
STEP_TF32 = 2.0**-11
SUM_FP8 = 2.0**-14
"""Of sums of fp8 products: matrix units keep about so much, and float32 is what they are cut to."""
DEVIATIONS = 4.0
"""Standard deviations of a random walk of roundings that are allowed; chosen."""
STEP_K = 16
"""Products that a matrix unit adds before it cuts the sum to float32; the least of all devices."""
CALL_ERROR = 2.0**-19
"""Relative error of one call before it is rounded: Triton's fast exp2 and log2 for arguments of
ordinary size."""
CANCELS = frozenset(
    f"aten.{name}"
    for name in (
        *("gelu.default", "sigmoid_backward.default", "tanh_backward.default"),
        *("addcmul.default", "addcdiv.default", "lerp.Tensor", "lerp.Scalar"),
    )
)
"""Calls whose formula adds what it has rounded, in eager as well."""
CANCELLED = 2.0**-20
"""Their error as a part of the largest thing that they are given."""
MIXTURES = 2
"""How often the chain is computed with random errors, beside the largest of either sign; chosen."""


def random_operand(layout: str, rows: int, columns: int, dtype: str, device: str) -> Tensor:
    """Normal random values ``[rows, columns]`` in the layout that a spec names."""
    import torch

    kind = getattr(torch, dtype)
    match layout:
        case "row":
            return torch.randn(rows, columns, device=device).to(kind)
        case "col":
            return torch.randn(columns, rows, device=device).to(kind).t()
    return torch.randn(rows, 3, columns, 2, device=device).to(kind)[:, 1, :, 1]


def random_input(item: Input, m: int, n: int, device: str) -> Tensor:
    """Normal random values for an input of an epilogue, of other strides than C's."""
    import torch

    match item.shape:
        case "matrix":
            values = torch.randn(m, 2 * n, device=device)[:, ::2]
        case "column":
            values = torch.randn(m, 3, device=device)[:, 1:2]
        case "vector":
            values = torch.randn(2 * n, device=device)[::2]
        case "one":
            values = torch.randn(1, device=device)
        case _:
            values = torch.randn((), device=device)
    return values > 0 if item.dtype == "bool" else values.to(getattr(torch, item.dtype))


def error_over_bound(
    spec: Spec,
    a: Tensor,
    b: Tensor | Sequence[Tensor],
    bias: Tensor | None,
    c: Tensor,
    inputs: Sequence[Tensor] = (),
) -> float:
    """The largest ``|C - float64|`` over what roundings explain for normal random operands.

    ``b`` is B, or every B where a spec has several products of A. At most 1 for a right result;
    infinite where C is not finite and should be. The chain is
    computed in float64, each value rounded as eager rounds it: once from the exact product, and a
    few times with as much error in the product and in each call as they may have. The product's is
    for the float32 sum along k a random walk (rounding) plus a drift (matrix units cut instead of
    rounding). A sum kept in float16 or bfloat16, or operands rounded to tf32, exceed it.
    """
    import torch

    if not c.numel():
        return 0.0
    inputs = inputs if bias is None else (*inputs, bias)
    k = max(a.shape[1], 1)
    factors = [factor.double() for factor in ([b] if isinstance(b, torch.Tensor) else b)]
    wide = a.double()
    product = torch.stack([wide @ factor for factor in factors])
    rows = wide.square().sum(1, keepdim=True).sqrt()
    lengths = torch.stack([rows * factor.square().sum(0).sqrt() for factor in factors])
    summing = STEP_FLOAT32 * (1 + math.sqrt(k) / STEP_K)
    if spec.precision == "tf32":
        summing += STEP_TF32 / math.sqrt(k)
    if spec.dtype in FP8:
        summing += SUM_FP8
    allowed = DEVIATIONS * summing * (1 + lengths)
    exact = evaluate(spec, product, inputs)
    generator = torch.Generator(product.device).manual_seed(0)

    def mixed(value: Tensor, allowed: Tensor | float) -> Tensor:
        signs = torch.rand(value.shape, generator=generator, device=value.device)
        return value + allowed * (2 * signs.double() - 1)

    def deviation(*others: Tensor) -> Tensor:
        return torch.stack([(other - exact).abs().nan_to_num(0.0) for other in others]).amax(0)

    # Errors of the product and of the calls may meet with any signs, or cancel one another.
    of_product = deviation(*(evaluate(spec, product + s * allowed, inputs) for s in (1, -1)))
    of_calls = deviation(*(evaluate(spec, product, inputs, wobble) for wobble in (_up, _down)))
    both = [evaluate(spec, mixed(product, allowed), inputs, mixed) for _ in range(MIXTURES)]
    bound = torch.maximum(of_product + of_calls, deviation(*both)) + STEP_FLOAT32 * exact.abs()
    difference = (c.double() - exact).abs()
    same = (c.double() == exact) | (c.isnan() & exact.isnan())
    ratio = torch.where(same, 0.0, difference / bound)
    return ratio.nan_to_num(torch.inf).max().item()


def _up(value: Tensor, allowed: Tensor | float) -> Tensor:
    return value + allowed


def _down(value: Tensor, allowed: Tensor | float) -> Tensor:
    return value - allowed


Wobble = Callable[["Tensor", "Tensor | float"], "Tensor"]
"""Adds an error of at most the second to the first."""


def evaluate(
    spec: Spec, product: Tensor, inputs: Sequence[Tensor], wobble: Wobble | None = None
) -> Tensor:
    """C in float64 from the float64 products of A and each B: each value rounded as eager does."""
    values: list[Tensor] = []
    like: list[Tensor] = []
    for call in spec.chain.calls:
        value, empty = _Evaluation(spec, product, inputs, values, like).of(call)
        if wobble is not None and value.is_floating_point():
            allowed = CALL_ERROR * value.abs()
            if call.op in CANCELS:
                given = [arg for arg in call.arguments if isinstance(arg, Ref)]
                sizes = (_tensor(ref, values, inputs).double().abs() for ref in given)
                allowed = allowed + CANCELLED * sum(sizes)
            value = wobble(value, allowed)
        values.append(value.to(empty.dtype).double() if value.is_floating_point() else value)
        like.append(empty)
    return values[-1]


def _tensor(ref: Ref, values: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    return values[ref.index] if ref.kind == "value" else inputs[ref.index]


@dataclass(frozen=True)
class _Evaluation:
    """One call of a chain, on numbers of float64, or truths.

    The dtypes are what torch says of tensors without data, and not what `promotion` says.
    """

    spec: Spec
    product: Tensor
    """One ``[m, n]`` for each B."""
    inputs: Sequence[Tensor]
    values: Sequence[Tensor]
    like: Sequence[Tensor]
    """Of each value one without data, of the dtype that eager would give it."""

    def of(self, call: Call) -> tuple[Tensor, Tensor]:
        """The value before it is rounded, and one like it without data."""
        given = bind(call)
        if call.op in GEMMS:
            value = self._gemm(call, given)
            return value, self._like(value, given.get("out_dtype") or Dtype(self.spec.dtype))
        if call.op in CASTS:
            value = self._numbers(call.arguments[0])
            value = value != 0 if given["dtype"] == Dtype("bool") else value.double()
            return value, self._like(value, given["dtype"])
        empty = _run(call, lambda arg: self._empty(arg) if isinstance(arg, Ref) else arg)
        first = next(self._empty(arg) for arg in call.arguments if isinstance(arg, Ref)).dtype

        def argument(arg: Any) -> Any:
            if isinstance(arg, Ref):
                number = self._numbers(arg)
                # Of no dimension, and of a wider dtype: eager casts it before it computes.
                is_cast = number.dim() == 0 and empty.is_floating_point()
                return number.to(empty.dtype).double() if is_cast else number
            if isinstance(arg, float) and empty.dtype != first and first.is_floating_point:
                return _in_dtype(arg, first)  # a comparison
            return arg

        return _run(call, argument), empty

    def _gemm(self, call: Call, given: Mapping[str, Any]) -> Tensor:
        product = self.product[given[GEMMS[call.op].b].index - 1]
        if "scale_a" in given:
            scaled = product * self._numbers(given["scale_a"])
            scaled = scaled * self._numbers(given["scale_b"])
            return scaled if given["bias"] is None else scaled + self._numbers(given["bias"])
        if "beta" not in given:
            return product
        bias = self._numbers(given["self"]) * given["beta"] if given["beta"] else 0.0
        return product * given["alpha"] + bias

    def _numbers(self, ref: Ref) -> Tensor:
        tensor = _tensor(ref, self.values, self.inputs)
        return tensor.double() if tensor.is_floating_point() else tensor

    def _empty(self, ref: Ref) -> Tensor:
        if ref.kind == "value":
            return self.like[ref.index]
        return self.inputs[ref.index].to("meta")

    def _like(self, value: Tensor, dtype: Dtype) -> Tensor:
        import torch

        return torch.empty(value.shape, dtype=getattr(torch, dtype.name), device="meta")


def _run(call: Call, argument: Callable[[Any], Any]) -> Tensor:
    import torch

    overload: Any = torch.ops
    for part in call.op.split("."):
        overload = getattr(overload, part)
    return overload(
        *(argument(arg) for arg in call.arguments), **{name: argument(v) for name, v in call.named}
    )


def _in_dtype(number: float, dtype: Any) -> float:
    import torch

    return torch.tensor(number, dtype=dtype).item()
