"""Random functions of scores, of the ops that are lowered, as code that a model might have."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

BATCH, HEADS, ROWS, KEYS, DIM = 2, 2, 5, 7, 8

Scores = torch.Tensor
Step = Callable[[Scores, torch.Tensor], Scores]

ALONE: dict[str, Callable[[Scores], Scores]] = {
    "tanh": lambda s: 3 * torch.tanh(s / 3),
    "sigmoid": lambda s: 4 * s.sigmoid(),
    "relu": F.relu,
    "leaky": lambda s: F.leaky_relu(s, 0.2),
    "elu": lambda s: F.elu(s, alpha=0.7),
    "softplus": F.softplus,
    "gelu": lambda s: F.gelu(s, approximate="tanh"),
    "silu": lambda s: F.silu(s),
    "softsign": F.softsign,
    "hardtanh": lambda s: F.hardtanh(s, -1.0, 2.0),
    "clamp": lambda s: s.clamp(max=2.5),
    "square": lambda s: -(s.clamp(-9, 9) ** 2) * 0.3,
    "abs": lambda s: s.abs() * 0.5,
    "cos": lambda s: 2.0 * s.clamp(-9, 9).cos(),
    "cast": lambda s: s if s.dtype == torch.float64 else s.float(),
    "scale": lambda s: s * 1.7,
    "divide": lambda s: s / -1.3,
    "shift": lambda s: 0.5 - s,
    "itself": lambda s: s * torch.sigmoid(s),
    "bent": lambda s: torch.where(s > 0.2, s, 0.1 * s),
    "between": lambda s: torch.lerp(s, s.tanh(), 0.25),
    "in place": lambda s: (s + 0).mul_(0.5).tanh_(),
    "log": lambda s: torch.log1p(s.abs()),
    "larger": lambda s: torch.maximum(s, -s * 0.5),
}
"""Functions of scores and nothing beside."""

BESIDE: dict[str, Callable[[Scores, torch.Tensor], Scores]] = {
    "add": lambda s, x: s + x,
    "added to": lambda s, x: x - s,
    "weigh": lambda s, x: s * x,
    "smaller": lambda s, x: torch.minimum(s, x),
    "choose": lambda s, x: torch.where(x > 0, s, s.tanh()),
    "in place": lambda s, x: s.clone().add_(x, alpha=0.5),
}
"""Functions of scores and a tensor that broadcasts to them."""

# What is masked stays in the range of float32 whatever follows, for the reference is wider.
MASKS: dict[str, Callable[[Scores, torch.Tensor], Scores]] = {
    "filled": lambda s, kept: s.masked_fill(~kept, -math.inf),
    "chosen": lambda s, kept: torch.where(kept, s, -1e30),
    "added": lambda s, kept: s + torch.where(kept, 0.0, -1e30),
    "weak": lambda s, kept: s.masked_fill(kept, -2.0),
}

SHAPES = (
    (BATCH, HEADS, ROWS, KEYS), (BATCH, 1, ROWS, KEYS), (HEADS, 1, KEYS), (ROWS, 1), (KEYS,),
    (1, HEADS, 1, 1), (),
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """An attention, and what it takes beside queries, keys and values."""

    name: str
    function: Callable[..., torch.Tensor]
    beside: tuple[torch.Tensor, ...]


def draw(seed: int) -> Drawn:
    """Return one to six functions in a row, of those above, and perhaps a sink."""
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    steps: list[Step] = []
    names: list[str] = []
    beside: list[torch.Tensor] = []
    for _ in range(chance.randint(1, 6)):
        kind: Any = chance.choice((ALONE, ALONE, BESIDE, MASKS))
        name = chance.choice(list(kind))
        names.append(name)
        if kind is ALONE:
            steps.append(lambda s, x, f=kind[name]: f(s))
            beside.append(torch.zeros(1))
            continue
        shape = chance.choice(SHAPES[:-1] if kind is MASKS else SHAPES)
        tensor = torch.randn(shape, generator=generator)
        steps.append(kind[name])
        beside.append(tensor > -0.7 if kind is MASKS else tensor)
    scale = chance.choice((1.0, 0.3, -0.4))
    has_sink = chance.random() < 0.25
    sinks = torch.randn(HEADS, generator=generator)

    def function(q: Any, k: Any, v: Any, *more: Any) -> Any:
        scores = (q @ k.mT) * scale
        for step, tensor in zip(steps, more, strict=False):
            scores = step(scores, tensor)
        if not has_sink:
            return scores.softmax(-1) @ v
        column = more[-1].reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v

    names.insert(0, f"{scale}")
    return Drawn(", ".join([*names, *["sinks"] * has_sink]), function, (*beside, sinks))


def operands(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, normal random."""
    generator = torch.Generator().manual_seed(1000 + seed)
    sizes = (ROWS, KEYS, KEYS)
    q, k, v = (torch.randn(BATCH, HEADS, n, DIM, generator=generator) for n in sizes)
    return q, k, v
