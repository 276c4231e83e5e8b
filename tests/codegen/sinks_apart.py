"""Weights of sinks, by the template's function in the interpreter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from overlapc.codegen.interpreting import correct_interpreter
from overlapc.codegen.templates.softmax import relative_to, sink_relative_to

correct_interpreter()

COUNT = 64


@triton.jit
def _weights(sinks, bases, out, UNIT: tl.constexpr, OF_SINKS: tl.constexpr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    sink, base = tl.load(sinks + place), tl.load(bases + place)
    if OF_SINKS:
        weights = sink_relative_to(sink, base, UNIT, False, tl.float32)
    else:
        weights = relative_to(sink, base, UNIT, False, tl.float32)
    tl.store(out + place, weights)


def error(far: float, unit: float, of_sinks: bool = True) -> float:
    """The largest relative error of weights of sinks that far above or below bases, in nats."""
    torch.manual_seed(0)
    one, other = torch.rand(COUNT) / unit, (torch.rand(COUNT) + far) / unit
    sinks, bases = (one, other) if far < 0 else (other, one)
    out = torch.full((COUNT,), torch.nan)
    _weights[(1,)](sinks, bases, out, unit, of_sinks, COUNT)
    wanted = torch.exp((sinks.double() - bases.double()) * unit)
    return ((out - wanted) / wanted).abs().max().item()
