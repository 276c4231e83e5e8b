"""Random attentions whose scores are spelled ``[..., keys, rows]``, on the way or throughout."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

UNLIKE = {"b": 2, "h": 3, "q": 5, "k": 17, "d": 6}
ALIKE = dict.fromkeys("bhqkd", 16)
"""Sizes by what they are of: no shape tells them apart, values do."""

PRODUCTS: dict[str, Callable[..., Any]] = {
    "k @ q^T": lambda q, k: k @ q.mT,
    "matmul": lambda q, k: torch.matmul(k, q.transpose(-1, -2)),
    "einsum": lambda q, k: torch.einsum("bhkd,bhqd->bhkq", k, q),
    "einsum, queries first": lambda q, k: torch.einsum("bhqd,bhkd->bhkq", q, k),
    "of one head of keys": lambda q, k: torch.einsum("bkd,bhqd->bhkq", k[:, 0], q),
    "baddbmm": lambda q, k: torch.baddbmm(
        q[0, 0, :, :1].mT, k.flatten(0, 1), q.flatten(0, 1).mT, beta=0.5, alpha=0.7
    ).view(*q.shape[:2], k.shape[-2], q.shape[-2]),
    "exchanged": lambda q, k: (q @ k.mT).transpose(2, 3),
    "negative": lambda q, k: 1.5 - k @ q.mT,
}

NUMBERS: dict[str, Callable[..., Any]] = {
    "scaled": lambda s: s * 0.6,
    "in place": lambda s: s.mul(1.0).div_(1.3),
    "there and back": lambda s: s.mT.contiguous().mT,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "capped": lambda s, x: 3 * torch.tanh(s / 3),
    "weighed": lambda s, x: s * x,
    "smaller": lambda s, x: torch.minimum(s, x),
}
"""Of scores and a tensor that broadcasts to them: torch's attention does none of them."""
MASKS: dict[str, Callable[..., Any]] = {
    "added": lambda s, x: s + x,
    "added to": lambda s, x: x + s,
    "filled": lambda s, x: s.masked_fill(x > 0.8, -math.inf),
    "chosen": lambda s, x: torch.where(x < 0.8, s, -math.inf),
    "exchanged": lambda s, x: (s.mT + x.mT).mT if x.ndim > 1 else s + x,
}
SHAPES = ("bhkq", "b1kq", "h1q", "hk1", "kq", "k1", "q", "1", "")

SOFTMAXES: dict[str, Callable[..., Any]] = {
    "softmax": lambda s: s.softmax(-2),
    "functional": lambda s: F.softmax(s, dim=2, dtype=torch.float64 if _is_wide(s) else None),
    "exchanged": lambda s: s.mT.softmax(-1).mT,
    "shifted": lambda s: (s - s.amax(-2, keepdim=True)).softmax(-2),
    "exp over sum": lambda s: s.exp() / s.exp().sum(-2, keepdim=True),
    "sum that is kept": lambda s: s.exp() / s.exp().sum(2)[:, :, None],
    "logsumexp": lambda s: (s - torch.logsumexp(s, -2, keepdim=True)).exp(),
    "log_softmax": lambda s: F.log_softmax(s, -2).exp(),
}

RESULTS: dict[str, Callable[..., Any]] = {
    "w^T @ v": lambda w, v: w.mT @ v,
    "einsum": lambda w, v: torch.einsum("bhkq,bhkd->bhqd", w, v),
    "einsum, values first": lambda w, v: torch.einsum("bhkd,bhkq->bhqd", v, w),
    "einsum, rows first": lambda w, v: torch.einsum("bhkq,bhkd->bqhd", w, v),
    "of one head": lambda w, v: torch.einsum("bhkq,bkd->bhqd", w, v[:, 0]),
    "v^T @ w": lambda w, v: v.mT @ w,
    "v^T @ w, regrouped": lambda w, v: (v.mT @ w).flatten(1, 2).contiguous(),
    "v^T @ w, exchanged twice": lambda w, v: v.mT @ w.mT.contiguous().mT,
}


def _is_wide(scores: Any) -> bool:
    return scores.dtype == torch.float64


@dataclass(frozen=True)
class Drawn:
    """An attention, and what it takes beside queries, keys and values."""

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    is_program: bool
    """Scores go through a function."""


def draw(seed: int, sizes: dict[str, int] = UNLIKE) -> Drawn:
    """Return an attention of one spelling of each part, and one to four steps between.

    Nine seeds in a row have every spelling of products, softmaxes and results, every mask and every
    shape of a mask.
    """
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def normal(labels: str) -> torch.Tensor:
        shape = [sizes.get(label, 1) for label in labels]
        return torch.randn(shape, generator=generator)

    def pick(kind: dict[str, Callable[..., Any]], turn: int) -> Callable[..., Any]:
        names.append(list(kind)[turn % len(kind)])
        return kind[names[-1]]

    names: list[str] = []
    multiply, weigh = pick(PRODUCTS, seed), pick(SOFTMAXES, seed + seed // 9)
    sum_up = pick(RESULTS, seed + seed // 81)
    kinds = chance.choices((NUMBERS, MASKS, FUNCTIONS), (2, 4, 1), k=chance.randint(0, 3))
    steps = [(kind is NUMBERS, pick(kind, chance.randrange(99))) for kind in kinds]
    steps.insert(turn := chance.randint(0, len(kinds)), (False, pick(MASKS, seed)))
    shapes = [chance.choice(SHAPES) for _ in kinds]
    shapes.insert(turn, SHAPES[seed % len(SHAPES)])
    beside = tuple(map(normal, shapes))

    def function(q: Any, k: Any, v: Any, *more: Any) -> Any:
        scores = multiply(q, k)
        for (is_alone, step), tensor in zip(steps, more, strict=True):
            scores = step(scores) if is_alone else step(scores, tensor)
        return sum_up(weigh(scores), v)

    operands = tuple(normal(labels) for labels in ("bhqd", "bhkd", "bhkd"))
    return Drawn(", ".join(names), function, (*operands, *beside), FUNCTIONS in kinds)
