"""The op that gives the gradients of an attention, and how autograd comes to call it.

It takes what the forward left: its result and the logarithms of sums, and no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from overlapc.codegen.attention.backward import build_backward
from overlapc.codegen.attention.backward_tiles import (
    MOST_COLUMNS,
    MOST_INPUT_COLUMNS,
    backward_tile_for,
)
from overlapc.codegen.attention.derivative import derivative
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.promotion import CannotLower
from overlapc.errors import KernelError
from overlapc.runtime.attention.gradient_operands import GradientOperands
from overlapc.runtime.attention.gradient_program import gradients_by_torch
from overlapc.runtime.attention.kernels import INTERPRETED, architecture, interprets
from overlapc.runtime.attention.op import BY_TORCH, lengths_of_each
from overlapc.runtime.attention.refused_gradients import refuse_gradients
from overlapc.runtime.attention.trained_rows import gradients_by_fused
from overlapc.runtime.kernel_attempts import KernelAttempts
from overlapc.runtime.ops import calls_of

SCHEMA = (
    "(Tensor slopes, Tensor? sums_slopes, Tensor query, Tensor key, Tensor value, Tensor out,"
    " Tensor sums, Tensor[] inputs, Tensor? lengths, Tensor? sinks, bool[] wanted, str spec,"
    " str site) -> Tensor[]"
)
"""``slopes`` and ``sums_slopes`` are the gradients of what the forward gave, ``out`` and ``sums``.
Gives those of query, key, value, each input and sinks that are ``wanted``, in this order; those of
the first three with rows before heads in memory."""

BACKWARD = "backward"
"""What calls are counted under that kernels computed."""

_library = torch.library.Library("overlapc", "FRAGMENT")
_kernels = KernelAttempts("gradients of attention")


def why_no_gradient(spec: AttentionSpec, of_inputs: Sequence[bool]) -> str:
    """Return why the op cannot give gradients, of which inputs too; empty if it can."""
    most = (MOST_INPUT_COLUMNS if any(of_inputs) else MOST_COLUMNS)[spec.dtype]
    if max(spec.head_dim, spec.value_dim) > most:
        of = " of a mask" if any(of_inputs) else ""
        return f"a gradient{of} is wanted, and heads of {spec.dtype} have more than {most} columns"
    try:
        if spec.scores:
            derivative(spec.scores)
            for index in _true(of_inputs):
                derivative(spec.scores, index)
    except CannotLower as error:
        return f"a gradient is wanted, and {error}"
    return ""


def _run(*given: Any) -> list[torch.Tensor]:
    *operands, spec, site = given
    call, read = GradientOperands(*operands), AttentionSpec.parse(spec)
    if not read.lse:
        raise KernelError(
            "Gradients of an attention are made from logarithms of sums, and it kept none.",
            where=site,
            remedy="give a spec with lse=1",
        )
    call = replace(call, lengths=lengths_of_each(call.lengths, call.query.shape[0]))
    kernels = (spec, str(call.query.device))
    found = _kernels.run(kernels, call.query, lambda: _by_kernels(read, call))
    if found is not None:
        calls_of(site)[BACKWARD] += 1
        return found
    calls_of(site)[BY_TORCH] += 1
    made = gradients_by_fused(read, call)
    made = gradients_by_torch(read, call) if made is None else made
    gradients = zip(call.results(call.wanted), made, strict=True)
    return [result.copy_(gradient) for result, gradient in gradients]


def _by_kernels(spec: AttentionSpec, call: GradientOperands) -> list[torch.Tensor]:
    def tile_of(own: AttentionSpec, part: str) -> AttentionTile:
        return _tile(own, part, call.query.device)

    wanted, sinks, sums_slopes = call.wanted, call.sinks, call.sums_slopes
    # Keys and values come together.
    asked = [wanted[0], True, True, *wanted[3:]]
    made = iter(call.results(asked))
    every = [next(made) if is_asked else None for is_asked in asked]
    of_inputs = wanted[3:-1]
    backward = build_backward(spec, tile_of, _true(of_inputs))
    backward(
        call.query, call.key, call.value, call.out, call.sums, call.slopes, q_gradient=every[0],
        k_gradient=_given(every[1]), v_gradient=_given(every[2]), input_gradients=every[3:-1],
        inputs=call.inputs, lengths=call.lengths, sinks=sinks, sinks_gradient=every[-1],
        lse_gradient=None if sums_slopes is None else sums_slopes.float().contiguous(),
    )  # fmt: skip
    return [_given(side) for side, is_wanted in zip(every, wanted, strict=True) if is_wanted]


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def _true(which: Sequence[bool]) -> tuple[int, ...]:
    return tuple(index for index, is_true in enumerate(which) if is_true)


def _fake(*given: Any) -> list[torch.Tensor]:
    call = GradientOperands(*given[:-2])
    return call.results(call.wanted)


def _tile(spec: AttentionSpec, part: str, device: torch.device) -> AttentionTile:
    if device.type != "cuda":
        interprets()
        return INTERPRETED
    return backward_tile_for(spec, architecture(device), part)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    query, key, value, more, lengths, _, sinks, spec, site, *_ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, lengths, sinks, *more)
    ctx.spec, ctx.site = spec, site


def _backward(
    ctx: Any, slopes: torch.Tensor | None, sums_slopes: torch.Tensor | None
) -> tuple[Any, ...]:
    query, key, value, out, sums, lengths, sinks, *inputs = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = [*needs[:3], *needs[3], needs[6]]
    slopes = torch.zeros_like(out) if slopes is None else slopes
    found = iter(
        torch.ops.overlapc.attention_backward(
            slopes, sums_slopes, query, key, value, out, sums, inputs, lengths, sinks, wanted,
            ctx.spec, ctx.site,
        )
    )  # fmt: skip
    each = [next(found) if is_wanted else None for is_wanted in wanted]
    return (*each[:3], each[3:-1], None, None, each[-1], *[None] * (len(needs) - 7))


_library.define(f"attention_backward{SCHEMA}", tags=(torch.Tag.needs_fixed_stride_order,))
_library.impl("attention_backward", _run, "CompositeExplicitAutograd")
torch.library.register_fake("overlapc::attention_backward", _fake, lib=_library)
torch.library.register_autograd(
    "overlapc::attention", _backward, setup_context=_setup, lib=_library
)
refuse_gradients(
    "attention_backward",
    _library,
    "The gradients of an attention have none of their own.",
    "ask for first derivatives alone, or leave the attention as it is spelled (softmax='off')",
)
