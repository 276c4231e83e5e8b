"""The backward of one drawn attention in the interpreter, against autograd of eager in float64.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from overlapc.codegen.attention.backward import AttentionBackward
from overlapc.codegen.attention.derivative import derivative
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.codegen.promotion import CannotLower
from tests.codegen import attention_oracle as oracle
from tests.codegen.attention_cases import looking_through_masks
from tests.codegen.attention_gradient_cases import made
from tests.codegen.drawn_attentions import BACKWARD, Drawn
from tests.codegen.drawn_memory import Watch, laid_out
from tests.codegen.drawn_precision import rounding_to_tf32
from tests.codegen.drawn_reference import phi_of, sides, step_of
from tests.codegen.drawn_runs import Memory, Result, check_each, in_memory, launch, same_bits
from tests.codegen.drawn_spoils import spoil
from tests.codegen.shuffled_grid import shuffled_grid

correct_interpreter()

SIDES = ("q", "k", "v")
ROUNDINGS = 4.0
"""Of the dtype, of the largest gradient: of weights, of gradients of scores and of the result."""
NOT_WORSE = 8.0
"""The error, against that of eager in float32, where that is larger: of one against another draw of
roundings."""


def run(seeds: Sequence[int], mutate: tuple[str, str] | None = None) -> dict[str, int]:
    """``check_each`` of the kernels of a backward."""
    return check_each(check, BACKWARD, seeds, mutate)


def check(drawn: Drawn, mutate: tuple[str, str] | None = None) -> int:
    """Raise AssertionError unless all gradients are those of float64; rows redone before."""
    chance = random.Random(drawn.seed)
    spoil(drawn, random.Random(f"spoils {drawn.seed}"))
    memory = in_memory(drawn, chance)
    left = launch(drawn, memory, chance, math.nan, drawn.spec.softmax)
    slopes = torch.randn(left.out.shape, generator=torch.Generator().manual_seed(drawn.seed))
    slopes = slopes.to(left.out.dtype)
    # Of a row without a key autograd's gradient of a logarithm is NaN, where its weights are not.
    has_slopes = chance.random() < 0.3 and drawn.spec.dead == "nan"
    of_lse = torch.randn(left.lse.shape) if has_slopes else None
    wide = by_autograd(drawn, slopes, of_lse, torch.float64)
    plain = by_autograd(drawn, slopes, of_lse, torch.float32)
    floats = [i for i in range(len(drawn.inputs)) if has_gradient(drawn, i)]
    backward = made(drawn.spec, (drawn.tile.block_m, drawn.tile.block_n), floats, mutate)
    first = gradients(backward, drawn, memory, left, slopes, of_lse, floats, chance, math.nan)
    again = gradients(backward, drawn, memory, left, slopes, of_lse, floats, chance, 7.0)
    for name, found in first.items():
        assert same_bits(found, again[name]), f"another order gives other bits of {name}"
        if name not in SIDES and multiplies_infinity(drawn):
            # Of keys that a row does not see it is NaN in eager, where they are not left out.
            found = found.masked_fill(~wide[name].isfinite(), math.nan)
        if drawn.is_spoiled and name != "v":
            # Zeros that a mask makes times what is no number are none in eager: here they are left
            # out, or not.
            are_left_out = ~wide[name].isfinite() & found.isfinite()
            wide[name], found = (x.masked_fill(are_left_out, 0.0) for x in (wide[name], found))
        compare(name, found, wide[name], plain[name], reach_of(drawn, slopes, name))
    return left.redone


def multiplies_infinity(drawn: Drawn) -> bool:
    """Whether an input is multiplied by what a mask may have made infinite."""
    names = drawn.features
    infinite = [i for i, name in enumerate(names) if name.endswith(("-inf", "by the score"))]
    return bool(infinite) and "weighed" in names[infinite[0] :]


def has_gradient(drawn: Drawn, index: int) -> bool:
    """Whether scores depend on an input in a way that has a derivative."""
    try:
        assert drawn.spec.scores is not None
        return bool(
            drawn.inputs[index].is_floating_point() and derivative(drawn.spec.scores, index)
        )
    except CannotLower:
        return False


def reach_of(drawn: Drawn, slopes: torch.Tensor, name: str) -> float:
    """By how much roundings may change a gradient, as far as they do not grow with it: those of
    products of which two are subtracted, and of logarithms of sums."""
    step = step_of(drawn.spec)
    phi = phi_of(drawn)
    far = 0.0 if phi is None else phi.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    if name == "v":
        return step + 2.0**-23 * far
    q, k, v = (side.nan_to_num(0.0, 0.0, 0.0) for side in sides(drawn, torch.float64))
    product = (drawn.spec.scale * q @ k.mT).detach().requires_grad_()
    q, k, v = q.abs(), k.abs(), v.abs()
    products = (slopes.double().abs() @ v.mT).max().item()
    inputs = [t.double() if t.is_floating_point() else t for t in drawn.inputs]
    scores = oracle.evaluate(drawn.spec, product, inputs)
    (steep,) = torch.autograd.grad(
        scores.nan_to_num(0.0, 0.0, 0.0).sum(), product, allow_unused=True
    )
    slope = 0.0 if steep is None else steep.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    terms = math.sqrt(math.prod(drawn.sizes[:3]))
    beside = max(q.max().item(), k.max().item()) * abs(drawn.spec.scale) * slope
    return (step + 2.0**-23 * far) * products * (beside if name in SIDES else terms)


def compare(
    name: str, found: torch.Tensor, wide: torch.Tensor, plain: torch.Tensor, reach: float
) -> None:
    """Raise AssertionError unless a gradient is within what roundings allow."""
    step = torch.finfo(found.dtype).eps / 2
    found = found.double()
    differs = (found.isfinite() != wide.isfinite()).sum().item()
    assert not differs, f"gradient of {name}: {differs} elements are finite, or eager's, not both"
    if not found.numel():
        return
    size = wide.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    error = (found - wide).nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    eager = (plain.double() - wide).nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    allowed = ROUNDINGS * (step * (1 + size) + reach) + NOT_WORSE * eager
    assert error <= allowed, (
        f"gradient of {name} is off by {error:.3g}, {error / allowed:.3g} of what is allowed; "
        f"the largest is {size:.3g}, eager's float32 is off by {eager:.3g}"
    )


def by_autograd(
    drawn: Drawn, slopes: torch.Tensor, of_lse: torch.Tensor | None, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Gradients of eager, all of it in ``dtype``."""
    leaves = {name: getattr(drawn, name).to(dtype).clone().requires_grad_() for name in SIDES}
    inputs = [t.to(dtype) if t.is_floating_point() else t for t in drawn.inputs]
    for index, tensor in enumerate(inputs):
        if tensor.is_floating_point():
            leaves[str(index)] = inputs[index] = tensor.detach().clone().requires_grad_()
    out, lse = oracle.attention(
        drawn.spec, *(leaves[name] for name in SIDES), inputs=inputs, lengths=drawn.lengths,
        sinks=drawn.sinks, dtype=dtype,
    )  # fmt: skip
    loss = (out * slopes.to(dtype)).sum()
    if of_lse is not None:
        loss = loss + (lse * of_lse.to(dtype)).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if own is None else own
        for (name, leaf), own in zip(leaves.items(), found, strict=True)
    }


def gradients(
    backward: AttentionBackward, drawn: Drawn, memory: Memory, left: Result, slopes: torch.Tensor,
    of_lse: torch.Tensor | None, floats: list[int], chance: random.Random, poison: float,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Those of q, k, v and inputs, poisoned before, by programs in a random order, under watch."""
    watch = Watch()
    slopes = laid_out(slopes, chance, math.nan)
    named: dict[str, Any] = {
        name: laid_out(torch.full_like(getattr(drawn, name).contiguous(), poison), chance, math.nan)
        for name in SIDES
    }
    of_inputs: list[torch.Tensor | None] = [None] * len(drawn.inputs)
    for index in floats:
        of_inputs[index] = torch.full_like(drawn.inputs[index].contiguous(), poison)
    for tensor in (memory.q, memory.k, memory.v, left.out, left.lse, slopes, of_lse, drawn.lengths,
                   drawn.sinks, *memory.named["inputs"]):  # fmt: skip
        watch.add(tensor)
    for tensor in (*named.values(), *of_inputs):
        watch.add(tensor, is_written=True)
    looking = looking_through_masks() if drawn.looks else nullcontext()
    order = shuffled_grid(random.Random(chance.random()))
    with looking, order, watch.watching(), rounding_to_tf32():
        backward(
            memory.q, memory.k, memory.v, left.out, left.lse, slopes,
            **{f"{name}_gradient": tensor for name, tensor in named.items()},
            input_gradients=of_inputs, lse_gradient=of_lse, **memory.named,
        )  # fmt: skip
    return named | {str(index): own for index in floats if (own := of_inputs[index]) is not None}
