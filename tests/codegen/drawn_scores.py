"""Random programs of scores, and masks, biases and positions that they read, as plain calls."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.codegen.score_programs import program

LEAST = torch.finfo(torch.float32).min
FILLS = (-math.inf, -math.inf, LEAST, -1e30, -2e9, -65504.0, -1e4)
Shape = tuple[int, int, int, int]

ALONE: dict[str, Callable[[str], list[tuple]]] = {
    "soft-cap": lambda s: [("div.Tensor", s, 5.0), ("tanh.default", "%"), ("mul.Tensor", "%", 5.0)],
    "large soft-cap": lambda s: [
        ("div.Tensor", s, 50.0), ("tanh.default", "%"), ("mul.Tensor", "%", 50.0),
    ],
    "sigmoid": lambda s: [("sigmoid.default", s), ("mul.Tensor", "%", 4.0)],
    "relu": lambda s: [("relu.default", s)],
    "leaky": lambda s: [("leaky_relu.default", s, 0.2)],
    "elu": lambda s: [("elu.default", s, 0.7)],
    "softplus": lambda s: [("softplus.default", s)],
    "silu": lambda s: [("silu.default", s)],
    "hardtanh": lambda s: [("hardtanh.default", s, -1.0, 2.0)],
    "clamp": lambda s: [("clamp.default", s, None, 2.5)],
    "square": lambda s: [
        ("clamp.default", s, -9.0, 9.0), ("square.default", "%"), ("mul.Tensor", "%", -0.3),
    ],
    "abs": lambda s: [("abs.default", s), ("mul.Tensor", "%", 0.5)],
    "cos": lambda s: [("clamp.default", s, -9.0, 9.0), ("cos.default", "%")],
    "scaled": lambda s: [("mul.Tensor", s, 1.7)],
    "divided": lambda s: [("div.Tensor", s, -1.3)],
    "from a number": lambda s: [("rsub.Scalar", s, 0.5)],
    "by itself": lambda s: [("sigmoid.default", s), ("mul.Tensor", s, "%")],
    "bent": lambda s: [
        ("gt.Scalar", s, 0.2), ("mul.Tensor", s, 0.1), ("where.self", "%-1", s, "%"),
    ],
    "between": lambda s: [("tanh.default", s), ("lerp.Scalar", s, "%", 0.25)],
    "logarithm": lambda s: [("abs.default", s), ("log1p.default", "%")],
    "larger": lambda s: [("mul.Tensor", s, -0.5), ("maximum.default", s, "%")],
    "exponential": lambda s: [("clamp.default", s, None, 1.5), ("exp.default", "%")],
    "by the score": lambda s: [("gt.Scalar", s, 2.2), ("where.ScalarSelf", "%", -math.inf, s)],
    "weakly by the score": lambda s: [("gt.Scalar", s, 2.2), ("where.ScalarSelf", "%", LEAST, s)],
}  # fmt: skip
"""Calls on a score ``s`` alone; ``%`` is the last value, ``%-1`` the one before it."""

BESIDE: dict[str, Callable[[str, str], list[tuple]]] = {
    "added": lambda s, x: [("add.Tensor", s, x)],
    "taken from": lambda s, x: [("sub.Tensor", x, s)],
    "weighed": lambda s, x: [("mul.Tensor", s, x)],
    "smaller": lambda s, x: [("minimum.default", s, x)],
    "chosen": lambda s, x: [
        ("gt.Scalar", x, 0.0), ("tanh.default", s), ("where.self", "%-1", s, "%"),
    ],
}  # fmt: skip
"""Calls on a score and an input of numbers."""


@dataclass
class Program:
    """Calls in the making and what they read."""

    sizes: Shape
    chance: random.Random
    generator: torch.Generator
    calls: list[tuple] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The program as a spec has it."""
        return program(" ".join(self.kinds), *self.calls) if self.calls else ""

    def emit(self, name: str, calls: list[tuple]) -> None:
        """Append calls; ``%`` and ``%-1`` become numbers of values."""
        self.names.append(name)
        for op, *given in calls:
            last = len(self.calls)
            places = {"%": f"%{last}", "%-1": f"%{last - 1}"}
            # Numbers are compared with texts by nobody: a mapping would hash them.
            self.calls.append((op, *(places.get(a, a) if isinstance(a, str) else a for a in given)))

    @property
    def score(self) -> str:
        """The last value."""
        return f"%{len(self.calls)}"

    def input_of(self, tensor: torch.Tensor, kind: str) -> str:
        """Take an input, perhaps without its leading dimensions of one element."""
        while tensor.dim() > 1 and tensor.shape[0] == 1 and self.chance.random() < 0.4:
            tensor = tensor[0]
        self.inputs.append(tensor)
        self.kinds.append(f"{kind}:{str(tensor.dtype).removeprefix('torch.')}")
        return f"@{len(self.inputs) - 1}"

    def shape_of(self, kind: str) -> Shape:
        """Sizes of an input, which is there once for all along some dimensions."""
        batch, heads, rows, keys = self.sizes
        own = {"matrix": (rows, keys), "column": (rows, 1), "vector": (1, keys), "one": (1, 1)}
        lead = [size if self.chance.random() < 0.5 else 1 for size in (batch, heads)]
        last = [size if self.chance.random() < 0.9 else 1 for size in own[kind]]
        return (lead[0], lead[1], last[0], last[1])

    def numbers(self, kind: str) -> torch.Tensor:
        dtype = self.chance.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16))
        if kind == "scalar":
            return torch.tensor(self.chance.choice((0.5, -1.25, 3.0)), dtype=dtype)
        return torch.randn(self.shape_of(kind), generator=self.generator).to(dtype)

    def truths(self) -> tuple[torch.Tensor, str]:
        """What is kept: most keys, few, ranges of keys, of a causal mask, or no key of a row."""
        kind = self.chance.choice(("matrix", "matrix", "vector"))
        shape = self.shape_of(kind)
        kept = torch.rand(shape, generator=self.generator) < self.chance.choice((0.9, 0.6, 0.05))
        way = self.chance.randrange(4)
        if way == 0:
            place = torch.arange(shape[3])
            first = self.chance.randint(0, shape[3])
            kept = kept | (place >= first)
            kept[..., :first] &= self.chance.random() < 0.5
        elif way == 1:
            kept = torch.ones(shape, dtype=torch.bool).tril(self.chance.randint(-2, 3))
        elif way == 2 and shape[2]:
            kept[:, :, self.chance.randrange(shape[2])] = False
        return kept, kind

    def mask(self) -> None:
        """Take keys away, in one of the spellings of that."""
        kept, kind = self.truths()
        fill = self.chance.choice(FILLS)
        way = self.chance.choice(("chosen", "chosen", "added", "negated", "halved"))
        if way == "chosen":
            mask = self.input_of(kept, kind)
            self.emit("chosen mask", [("where.ScalarOther", mask, self.score, fill)])
        elif way == "negated":
            mask = self.input_of(~kept, kind)
            self.emit("hiding mask", [("where.ScalarSelf", mask, fill, self.score)])
        else:
            dtype = torch.float16 if way == "halved" else torch.float32
            fill = fill if fill == -math.inf else max(fill, torch.finfo(dtype).min)
            added = torch.zeros(kept.shape, dtype=dtype).masked_fill(~kept, fill)
            mask = self.input_of(added, kind)
            self.emit("added mask", [("add.Tensor", self.score, mask)])
        self.names[-1] += f" of {fill:g}"

    def positions(self) -> None:
        """Add slopes of heads times positions, as ALiBi does."""
        _, heads, rows, keys = self.sizes
        slopes = 2.0 ** -torch.arange(heads)[:, None, None] * self.chance.choice((0.5, -0.25, 1.0))
        if self.chance.random() < 0.5:
            added, kind = slopes * torch.arange(keys), "vector"
        else:
            apart = torch.arange(keys) - torch.arange(rows)[:, None]
            added, kind = -slopes.abs() * apart.abs(), "matrix"
        self.emit("positions", [("add.Tensor", self.score, self.input_of(added, kind))])


def draw_scores(chance: random.Random, generator: torch.Generator, sizes: Shape) -> Program:
    """Return nothing, a mask, or up to five functions and masks in a row, of scores
    ``[batch, heads, rows, keys]``."""
    made = Program(sizes, chance, generator)
    way = chance.choice(("none", "mask", "masks", "cap", "positions", "any", "any", "any"))
    if way in ("mask", "masks"):
        for _ in range(2 if way == "masks" else 1):
            made.mask()
    elif way == "cap":
        name = chance.choice(("soft-cap", "large soft-cap", "sigmoid", "hardtanh"))
        made.emit(name, ALONE[name](made.score))
        if chance.random() < 0.5:
            made.mask()
    elif way == "positions":
        made.positions()
        if chance.random() < 0.5:
            made.mask()
    elif way == "any":
        for _ in range(chance.randint(1, 5)):
            kind = chance.choice(("alone", "alone", "beside", "beside", "mask", "positions"))
            if kind == "mask":
                made.mask()
            elif kind == "positions":
                made.positions()
            elif kind == "alone":
                name = chance.choice(list(ALONE))
                made.emit(name, ALONE[name](made.score))
            else:
                name = chance.choice(list(BESIDE))
                shape = chance.choice(("matrix", "column", "vector", "one", "scalar"))
                given = made.input_of(made.numbers(shape), shape)
                made.emit(name, BESIDE[name](made.score, given))
    return made
