"""Random programs around an attention, as text that a person might have written.

Each statement is run as it is drawn, and left out where eager does not take it: so what is drawn of
shapes, dtypes and memory need not be told what goes with what.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from tests.attention.program_texts import KINDS, RARE, SHAPES, Kind

DTYPES = ("torch.float32",) * 8 + ("torch.bfloat16", "torch.float16", "torch.float64")
MOST_NUMBERS = 1e6
"""The largest number in what is drawn, but masks: further out all rounding is amplified."""
TRIES = 8
STEPS = ("SCALES", "FUNCTIONS", "FILLS", "ADDED", "WHOLE", "GIVEN", "MADE")
CASTING = "with torch.autocast('cpu', torch.bfloat16):"
MODULES = {"torch": torch, "F": F, "math": math, "operator": operator}


@dataclass(frozen=True)
class Program:
    """A function of some tensors, and what makes those."""

    seed: int
    inputs: dict[str, str]
    """What each is made by, of those before it."""
    lines: tuple[str, ...]
    result: str
    trained: tuple[str, ...] = ()
    """Inputs that gradients are taken of."""
    is_dynamic: bool = False
    """It is compiled for sizes that vary."""
    is_cast: bool = False
    """It runs under autocast."""

    @property
    def text(self) -> str:
        """The function, and what it takes as a comment."""
        head = [f"# {name} = {made}" for name, made in self.inputs.items()]
        head += [f"# gradients of {', '.join(self.trained)}"] * bool(self.trained)
        head += ["# sizes vary"] * self.is_dynamic
        lines = (*self.lines, f"return {self.result}")
        body = [f"    {line}" for line in lines]
        if self.is_cast:
            body = [f"    {CASTING}", *(f"    {line}" for line in body)]
        return "\n".join([*head, f"def f({', '.join(self.inputs)}):", *body, ""])

    @property
    def is_whole(self) -> bool:
        """Whether it came as far as a product with values."""
        return any(line.startswith(("o =", "torch.matmul(w, v, out=o")) for line in self.lines)

    def function(self) -> Any:
        """Return it as something to call."""
        space = dict(MODULES)
        exec(compile(self.text, f"<program {self.seed}>", "exec"), space)
        return space["f"]

    def make(self, again: int = 0) -> list[torch.Tensor]:
        """Return its inputs, new ones of other values for each number."""
        space: dict[str, Any] = dict(MODULES)
        for place, (name, made) in enumerate(self.inputs.items()):
            torch.manual_seed(self.seed * 100 + place + 10_000_019 * again)
            space[name] = eval(made, space)
            if name in self.trained:
                space[name] = space[name].detach().requires_grad_()
        return [space[name] for name in self.inputs]

    def without(self, place: int) -> Program:
        """Return it without a line."""
        return replace(self, lines=self.lines[:place] + self.lines[place + 1 :])


@dataclass
class Writer:
    """A program that is being written, and what its names stand for after the last line."""

    seed: int
    chance: random.Random
    inputs: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=lambda: dict(MODULES))
    sizes: dict[str, Any] = field(default_factory=dict)
    is_usual: bool = False
    """Statements are those that models have."""
    rare: tuple[str, str] = ("", "")
    """A statement that is to be among them, and its kind."""

    def wants(self, kind: str, otherwise: float) -> bool:
        """Return whether there is to be a statement of a kind, by chance if it need not be."""
        return self.chance.random() < otherwise or self.rare[0] == kind

    def tensors(self) -> list[str]:
        """Return the names of all tensors that there are."""
        return [name for name, value in self.space.items() if isinstance(value, torch.Tensor)]

    def give(self, name: str, made: str) -> None:
        """Let the program take an input."""
        torch.manual_seed(self.seed * 100 + len(self.inputs))
        self.space[name] = eval(made, self.space)
        self.inputs[name] = made

    def add(self, line: str) -> bool:
        """Run a line and keep it; return whether eager took it."""
        held = dict(self.space)
        try:
            exec(line, self.space)
        except (RuntimeError, TypeError, ValueError, LookupError, NameError, AttributeError):
            self.space = held
            return False
        self.lines.append(line)
        return True

    def choose(self, kind: str) -> str:
        """Return one line of a kind."""
        if kind == self.rare[0]:
            return self.rare[1]
        return self.chance.choice(KINDS[kind].usual if self.is_usual else KINDS[kind].all)

    def pick(self, kind: str | Kind, **names: str) -> bool:
        """Add one line of a kind that eager takes; return whether one was found."""
        values = {key: str(value) for key, value in self.sizes.items()} | names
        known = KINDS[kind] if isinstance(kind, str) else kind
        lines = [self.chance.choice(known.usual if self.is_usual else known.all)
                 for _ in range(TRIES)]  # fmt: skip
        if kind == self.rare[0]:
            lines[:0] = [self.rare[1]] * (self.chance.random() < 0.8)
        for line in lines:
            for key, value in values.items():
                line = line.replace(f"<{key}>", value)
            before, held = len(self.lines), dict(self.space)
            if all(self.add(part) for part in line.split(" ;; ")):
                return True
            del self.lines[before:]
            self.space = held
        return False

    def disturb(self, times: int, among: Sequence[str] = ()) -> None:
        """Let names share memory, and write to what has any, or to one that is ``among`` some."""
        for _ in range(times):
            name = self.chance.choice(among or self.tensors())
            value = self.space[name]
            if not among and self.chance.random() < 0.4:
                self.pick("ALIASES", t=name, new=f"a{len(self.lines)}")
                continue
            kind = "WRITES" if value.dtype.is_floating_point else "WRITES_OF_BOOLEANS"
            self.pick(kind, t=name, u=self.chance.choice(self.tensors()))


def draw(seed: int, is_disturbed: bool | None = None) -> Program:
    """Return a program; by its seed alone it is known."""
    chance = random.Random(seed)
    writer = Writer(seed, chance, rare=RARE[seed % len(RARE)])
    _sizes(writer)
    _operands(writer)
    if is_disturbed is None:
        is_disturbed = chance.random() < 0.3
    is_about_memory = writer.rare[0] in ("ALIASES", "WRITES", "WRITES_OF_BOOLEANS")
    rate = 0.25 if is_about_memory else 0.15 if is_disturbed else 0.0

    def usually() -> None:
        writer.is_usual = chance.random() < 0.92

    def perhaps() -> None:
        usually()
        if chance.random() < rate:
            writer.disturb(chance.choice((1, 1, 2)))

    for name in "qkv":
        if writer.wants("PREPARED", 0.3):
            writer.pick("PREPARED", t=name)
        perhaps()
    if writer.wants("VALUES", 0.03):
        writer.pick("VALUES")
    is_turned = chance.random() < 0.1 or "COLUMNS" in writer.rare[0] or writer.rare[0] == "TURNED"
    if not writer.pick("TURNED" if is_turned else "PRODUCTS"):
        is_turned = not writer.add("s = q @ k.mT")
    if is_about_memory and chance.random() < 0.6:
        writer.disturb(1, among="kv")
    perhaps()
    steps = max(chance.choice((0, 1, 1, 2, 2, 3)), writer.rare[0] in STEPS)
    for _ in range(steps):
        _step(writer, is_turned=is_turned)
        perhaps()
    softmaxes = "SOFTMAXES_OF_COLUMNS" if is_turned else "SOFTMAXES"
    first = Kind(KINDS[softmaxes].usual[:2], KINDS[softmaxes].usual[:2])
    writer.pick(softmaxes if writer.wants(softmaxes, 0.4) else first)
    perhaps()
    if writer.wants("WEIGHTS", 0.15):
        writer.pick("WEIGHTS")
        perhaps()
    if not writer.pick("RESULTS_OF_COLUMNS" if is_turned else "RESULTS"):
        writer.pick("LAST")
    perhaps()
    if writer.wants("AFTER", 0.3):
        writer.pick("AFTER")
        perhaps()
    return _finished(writer)


def _sizes(writer: Writer) -> None:
    chance = writer.chance
    keys = chance.choice((17, 17, 16, 19, 1, 3))
    heads = chance.choice((4, 2, 4, 1))
    columns = chance.choice((8, 8, 6, 4))
    writer.sizes = {
        "B": chance.choice((2, 2, 3, 1)),
        "H": heads, "G": chance.choice((heads, heads // 2 or 1, 1)),
        "Q": chance.choice((5, 5, keys, keys, 1, 9, 20)), "K": keys, "D": columns,
        "E": chance.choice((columns, columns, 3)),
    }  # fmt: skip
    writer.sizes["dtype"] = chance.choice(DTYPES)


def _operands(writer: Writer) -> None:
    size, chance = writer.sizes, writer.chance
    dims = chance.choice(("B, H", "B, H", "B, H", "B, H", "H", ""))
    groups = "G" if dims == "B, H" and writer.wants("REPEATS", 0.3) else "H"
    for name, rows, columns in (("q", "Q", "D"), ("k", "K", "D"), ("v", "K", "E")):
        labels = f"{dims if name == 'q' else dims.replace('H', groups)}, {rows}, {columns}"
        batch = [1 if label == "B" and chance.random() < 0.06 else size[label]
                 for label in labels.strip(", ").split(", ")]  # fmt: skip
        plain = f"torch.randn({', '.join(map(str, batch))}, dtype={size['dtype']})"
        made = writer.choose("MEMORY") if writer.wants("MEMORY", 0.15) else "<plain>"
        made = made.replace("<plain>", plain)
        try:
            writer.give(name, made)
        except (RuntimeError, LookupError, NameError, AttributeError):
            writer.give(name, plain)
    if chance.random() < 0.4:
        whole = "torch.randint(0, 5, ())", f"torch.randint(1, {size['K'] + 1}, ({size['B']},))"
        for name, made in zip("pn", whole, strict=True):
            writer.give(name, made)
        writer.give("at", f"p + torch.arange({size['Q']})")
    if groups == "G" and size["G"] != size["H"]:
        for name in "kv":
            writer.pick("REPEATS", t=name, n=str(size["H"] // size["G"]))


def _step(writer: Writer, *, is_turned: bool) -> None:
    chance, size = writer.chance, writer.sizes
    kind = writer.rare[0] if chance.random() < 0.6 else ""
    if (roll := chance.random()) < 0.3 or kind == "SCALES":
        writer.pick("SCALES")
    elif roll < 0.4 or kind == "FUNCTIONS":
        writer.pick("FUNCTIONS")
    else:
        shape = chance.choice(SHAPES)
        if is_turned:
            shape = shape.replace("Q, K", "K, Q").replace("1, K", "K, 1")
        sizes = ", ".join(str(size.get(label, 1)) for label in shape.split(", ") if label)
        sizes = f"({sizes},)" if sizes else "()"
        name = f"m{len(writer.inputs)}"
        if chance.random() < 0.5:
            made = writer.choose("GIVEN").replace("<shape>", sizes)
            try:
                writer.give(name, made.replace("<dtype>", size["dtype"]))
            except RuntimeError:  # a number that its dtype has not
                writer.give(name, f"torch.randn({sizes})")
        else:
            writer.pick("MADE", new=name, shape=sizes)
        if name in writer.space:
            is_bool = writer.space[name].dtype == torch.bool
            is_whole = not is_bool and not writer.space[name].dtype.is_floating_point
            kind = "FILLS" if is_bool else "WHOLE" if is_whole else "ADDED"
            writer.pick(kind, m=name)


def _finished(writer: Writer) -> Program:
    chance = writer.chance
    names = ["o"] if "o" in writer.space else []
    others = [n for n in writer.tensors() if n not in (*names, *writer.inputs)]
    if chance.random() < 0.12 and others:
        names += chance.sample(others, min(len(others), chance.choice((1, 1, 2))))
    elif chance.random() < 0.05:
        names += [chance.choice(list(writer.inputs))]
    if not names:
        names = ["q"]
    program = Program(writer.seed, writer.inputs, tuple(writer.lines), f"({', '.join(names)},)")
    if chance.random() < 0.25 or "grad" in writer.rare[1]:
        trained = [n for n, made in writer.inputs.items() if "randn" in made and n not in made]
        trained = [n for n in trained if chance.random() < 0.7]
        program = replace(program, trained=tuple(trained))
    return replace(program, is_dynamic=chance.random() < 0.15)
