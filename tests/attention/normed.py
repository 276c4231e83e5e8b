"""Attention whose queries and keys are normed, in spellings that bound its scores, or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

BATCH, HEADS, LENGTH, DIM = 2, 2, 12, 16
HALF = DIM // 2

Norm = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def as_llama(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return gain * wide.to(x.dtype)


def as_gemma(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide * (1.0 + gain.float())).type_as(x)


def by_one_call(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), gain, 1e-6)


def divided(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt(1e-6 + (x * x).mean(dim=-1, keepdim=True)) * gain


def ungained(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def of_all_heads(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """As in OLMo 2: one norm over the columns of all heads."""
    flat = x.transpose(1, 2).reshape(BATCH, LENGTH, HEADS * DIM)
    flat = F.rms_norm(flat, (HEADS * DIM,), torch.cat((gain, 0.5 * gain)), 1e-6)
    return flat.view(BATCH, LENGTH, HEADS, DIM).transpose(1, 2)


def of_lengths(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Another dimension, so that nothing is known of rows."""
    return x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + 1e-6) * gain


def of_length_one(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1) * gain


def by_its_length(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6) * gain


def by_more_than_its_length(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-6) * gain


def by_less_than_its_length(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (x.norm(dim=-1, keepdim=True) - 1e-6) * gain


def by_a_number_less_than_its_length(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + -1e-6) * gain


def by_the_length_of_others(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (0.5 * x).norm(dim=-1, keepdim=True) * gain


def by_another_length(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, p=3.0, dim=-1) * gain


def of_columns(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=2) * gain


def of_another(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """The mean is of other rows."""
    return x * torch.rsqrt(x.flip(-2).pow(2).mean(-1, keepdim=True) + 1e-6) * gain


def less_than_nothing(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """What is taken off makes rows longer."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + -1e-6) * gain


def by_activation(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return as_llama(x, gain) * x[0, 0, 0]


def by_temperature(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """A number of no dimension is no row."""
    return as_llama(x, gain) * x[0, 0, 0, 0]


def rounded_down(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """What is below zero gets longer."""
    root = torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return torch.div(x, root, rounding_mode="floor") * gain


def squared_in_half(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    half = x.half()
    return half * torch.rsqrt(half.pow(2).mean(-1, keepdim=True) + 1e-9) * gain


def cosine_and_sine(factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.arange(LENGTH, dtype=torch.float32)[:, None]
    angle = place / 10000 ** (torch.arange(0, DIM, 2) / DIM)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * factor, angle.sin() * factor


def turned(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((-x[..., HALF:], x[..., :HALF]), dim=-1)


def chunked(x: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat((-other, one), dim=-1)


class Attention(nn.Module):
    """Rows ``[BATCH, HEADS, LENGTH, DIM]`` are normed and perhaps turned."""

    def __init__(
        self,
        norm: Norm = as_llama,
        rotates: Callable[[torch.Tensor], torch.Tensor] | None = turned,
        angles: Callable[[], tuple[torch.Tensor, torch.Tensor]] = cosine_and_sine,
        largest: float = 1.5,
        finish: Callable[[torch.Tensor], torch.Tensor] = lambda scores: scores,
    ) -> None:
        super().__init__()
        self.norm, self.rotates, self.angles, self.finish = norm, rotates, angles, finish
        # The largest gains are those of one pair of columns, and of no one column.
        self.q, self.k = (nn.Parameter(torch.linspace(0.2, 1.0, DIM)) for _ in range(2))
        self.q.data[0], self.k.data[HALF], self.k.data[3] = largest, largest, -0.7

    def sides(self, q: Any, k: Any) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = self.norm(q, self.q), self.norm(k, self.k)
        if self.rotates is None:
            return q, k
        cosine, sine = self.angles()
        cosine, sine = cosine.to(q.dtype), sine.to(q.dtype)
        return q * cosine + self.rotates(q) * sine, k * cosine + self.rotates(k) * sine

    def scores(self, q: Any, k: Any) -> torch.Tensor:
        q, k = self.sides(q, k)
        return q @ k.transpose(-1, -2) * DIM**-0.5

    def forward(self, q: Any, k: Any, v: Any) -> torch.Tensor:
        scores = self.finish(self.scores(q, k))
        return torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v


@dataclass(frozen=True)
class Case:
    """A model, and what its bound is in terms of the gains as the norm has them."""

    make: Callable[[], Attention]
    gain: Callable[[torch.Tensor], torch.Tensor] = torch.abs
    columns: int = DIM
    """That the norm is over."""
    factor: float = 1.0

    def bound(self, model: Attention) -> float:
        """Of scaled products, computed as the text of the idea has it."""
        gains = [self.gain(side.detach().double()) for side in (model.q, model.k)]
        if model.rotates is None:
            largest = (gains[0] * gains[1]).max()
        else:
            one, other = (torch.maximum(gain[:HALF], gain[HALF:]) for gain in gains)
            largest = (one * other).max()
        return float(largest) * self.columns * self.factor / math.sqrt(DIM)


BOUNDED = {
    "as in llama": Case(Attention),
    "as in gemma": Case(lambda: Attention(as_gemma), lambda gain: (1 + gain).abs()),
    "by one call": Case(lambda: Attention(by_one_call)),
    "divided": Case(lambda: Attention(divided)),
    "without gains": Case(lambda: Attention(ungained), torch.ones_like),
    "not turned": Case(lambda: Attention(rotates=None)),
    "chunks": Case(lambda: Attention(rotates=chunked)),
    "angles scaled": Case(lambda: Attention(angles=lambda: cosine_and_sine(1.2)), factor=1.44),
    "of length one": Case(lambda: Attention(of_length_one), columns=1),
    "by its length": Case(lambda: Attention(by_its_length), columns=1),
    "by more than its length": Case(lambda: Attention(by_more_than_its_length), columns=1),
    "of all heads": Case(lambda: Attention(of_all_heads), columns=HEADS * DIM),
}


def operands(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries, keys and values of any size."""
    return [10 * torch.randn(BATCH, HEADS, LENGTH, DIM, dtype=dtype) for _ in range(3)]
