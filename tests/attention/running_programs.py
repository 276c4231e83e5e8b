"""Runs a program by eager and by what is left of it, and says where they differ."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from overlapc import options as user_options
from overlapc.dynamo import rewrite_before_autograd
from overlapc.reporting.records import Site
from tests.attention.random_programs import Program

Variant = tuple[str, Callable[[], AbstractContextManager[Any]]]
"""Option ``softmax``, and what the matcher is changed by while it reads."""
OURS: dict[str, Variant] = {name: (name, nullcontext) for name in ("sdpa", "unified")}
ROUGH = re.compile(r"half|float16")
OF_EAGER = ("modified by an inplace operation", "is a view and")
"""What eager autograd says of a graph that is compiled without writes in place."""
EXPONENTIALS = re.compile(r"exp2?\(|pow\(2|softmin|logsumexp")
SIGNS = {"rewritten": "", "kept": "=", "refused": "!"}

_library = torch.library.Library("fuzzing", "DEF")
_library.define("halve(Tensor(a!) x) -> ()")
_library.define("halve_all(Tensor(a!)[] xs) -> ()")


def _halve(x: torch.Tensor) -> None:
    x.copy_(x / 2)


def _halve_all(xs: list[torch.Tensor]) -> None:
    torch._foreach_mul_(xs, 0.5)


for _key in ("CPU", "Meta"):
    _library.impl("halve", _halve, _key)
    _library.impl("halve_all", _halve_all, _key)


@dataclass
class Outcome:
    """What a run gave."""

    error: str = ""
    results: Sequence[Any] = ()
    inputs: Sequence[torch.Tensor] = ()
    gradients: Sequence[torch.Tensor | None] = ()

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that somebody can read after it."""
        every = (*self.results, *self.inputs, *self.gradients)
        return [one for one in every if isinstance(one, torch.Tensor)]

    def shared(self) -> list[int]:
        """For each result the first result or input that it shares memory with."""
        every = [t.untyped_storage().data_ptr() if t.numel() else -i
                 for i, t in enumerate((*self.inputs, *self.results), 1)]  # fmt: skip
        return [every.index(one) for one in every]


def run(function: Callable[..., Any], program: Program, inputs: list[torch.Tensor]) -> Outcome:
    """Call a function, and take gradients where they are wanted."""
    try:
        results = function(*inputs)
        given = dict(zip(program.inputs, inputs, strict=True))
        leaves = [given[name] for name in program.trained]
        ends = [one for one in results if one.requires_grad]
        gradients: Sequence[torch.Tensor | None] = ()
        if leaves and ends:
            torch.manual_seed(program.seed)
            weights = [torch.randn_like(one) for one in ends]
            gradients = torch.autograd.grad(ends, leaves, weights, allow_unused=True)
    except Exception as error:
        return Outcome(type(error).__name__ + ": " + str(error)[:200])
    return Outcome("", [r.detach() for r in results], [i.detach() for i in inputs], gradients)


@dataclass
class Tried:
    """A program with what became of it under each choice."""

    program: Program
    sites: dict[str, list[Site]]
    wrong: dict[str, list[str]]
    """What differs, by variant."""

    @property
    def is_wrong(self) -> bool:
        """Return whether anything differs."""
        return any(self.wrong.values())

    def codes(self, variant: str) -> list[str]:
        """As of ``rewriting.Rewritten``."""
        return [SIGNS[site.decision] + site.code for site in self.sites[variant]]


def attempt(program: Program, variants: Mapping[str, Variant] = OURS) -> Tried | None:
    """Compile a program and compare; None where eager or Dynamo does not take it."""
    wanted = [run(program.function(), program, program.make(again)) for again in (0, 1)]
    if wanted[0].error:
        return None
    sites: dict[str, list[Site]] = {name: [] for name in variants}
    chosen = ""

    def backend(module: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        graphs: dict[str, Callable[..., Any]] = {"": module}
        for name, (softmax, changed) in variants.items():
            other = graphs[name] = copied(module)
            options = user_options.from_user({"softmax": softmax})
            with changed():
                for compilation in rewrite_before_autograd(other, options, examples):
                    sites[name].extend(compilation.sites)
        return lambda *args: graphs[chosen](*args)

    torch._dynamo.reset()
    compiled = torch.compile(program.function(), backend=backend, dynamic=program.is_dynamic)
    if differences(program, run(compiled, program, program.make()), wanted[0], None):
        return None  # Dynamo itself gives something else
    tried = Tried(program, sites, {name: [] for name in variants})
    for name, found in tried.wrong.items():
        found += [site.reason for site in sites[name] if site.code == "internal"]
        if not any(site.decision == "rewritten" for site in sites[name]):
            continue
        chosen = name
        for again in (0, 1):
            own = run(compiled, program, program.make(again))
            if differences(program, own, wanted[again], wanted[again]):
                noisy = run(program.function(), program, disturbed(program.make(again)))
                found += differences(program, own, wanted[again], noisy)
    return tried


def attempt_compiled(program: Program) -> list[str]:
    """Compile a program as a user does, by Inductor; return what differs, of two calls."""
    wrong = []
    torch._dynamo.reset()
    options = {"softmax": "sdpa"}
    compiled = torch.compile(
        program.function(), backend="overlapc", options=options, dynamic=program.is_dynamic
    )
    for again in (0, 1):
        wanted = run(program.function(), program, program.make(again))
        if wanted.error:
            return []
        own = run(compiled, program, program.make(again))
        noisy = run(program.function(), program, disturbed(program.make(again)))
        wrong += differences(program, own, wanted, noisy)
    return wrong


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph, that may be rewritten."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph)


def disturbed(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return inputs with some more rounding: how far results move is how well they are known."""
    torch.manual_seed(0)
    with torch.no_grad():
        for one in inputs:
            is_plain = one.dtype.is_floating_point and one.is_contiguous()
            if is_plain:
                one.mul_(1 + 4 * torch.finfo(one.dtype).eps * torch.randn(one.shape))
    return inputs


def differences(
    program: Program, found: Outcome, wanted: Outcome, noisy: Outcome | None
) -> list[str]:
    """Say where what was found is not what was wanted."""
    if any(word in found.error for word in OF_EAGER):
        return []
    if found.error or wanted.error:
        return [f"raises {found.error}"] * (found.error[:20] != wanted.error[:20])
    if noisy is not None and (noisy.error or len(noisy.tensors) != len(wanted.tensors)):
        return []
    if found.shared() != wanted.shared():
        return [f"shares {found.shared()}, not {wanted.shared()}"]
    if len(found.tensors) != len(wanted.tensors):
        return [f"gives {len(found.tensors)} tensors, not {len(wanted.tensors)}"]
    is_rough = bool(ROUGH.search(program.text))
    may_overflow = bool(EXPONENTIALS.search(program.text))
    others = noisy.tensors if noisy is not None else wanted.tensors
    said = []
    first = len(wanted.results) + len(wanted.inputs)
    # What adds up to a gradient of zero, as of the key of rows that have one, is as others' are.
    least = 0.1 * max((_largest(one) for one in wanted.tensors[first:]), default=0.0)
    for place, (a, b, c) in enumerate(zip(found.tensors, wanted.tensors, others, strict=True)):
        is_laid_out = place < first  # gradients are as they come
        size = max(_largest(b), 1e-3, 0.0 if is_laid_out else least)
        why = _difference(a, b, c, size, is_rough, may_overflow)
        why = why or (is_laid_out and _strides(a, b)) or ""
        if why:
            said.append(f"tensor {place} {why}")
    return said


def _difference(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    size: float,
    is_rough: bool,
    may_overflow: bool,
) -> str:
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"is {a.dtype}{list(a.shape)}, not {b.dtype}{list(b.shape)}"
    if not a.dtype.is_floating_point:
        is_steady = torch.equal(b, c)
        return "differs" if is_steady and not torch.equal(a, b) else ""
    x, y, z = (t.double() for t in (a, b, c))
    if not torch.equal(y.isfinite(), z.isfinite()):
        return ""
    if may_overflow and not y.isfinite().all():
        return ""  # exponentials beyond their dtype, which the fused softmax does not make
    special = [t.masked_fill(t.isfinite(), 0.0) for t in (x, y)]
    if not torch.equal(*(t.nan_to_num(7.0, 8.0, 9.0) for t in special)):
        return f"has {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite, not " \
               f"{int(y.isnan().sum())} and {int(y.isinf().sum())}"  # fmt: skip
    x, y, z = (t.nan_to_num(0.0, 0.0, 0.0) for t in (x, y, z))
    if not x.numel():
        return ""
    error, known = float((x - y).abs().max()) / size, float((z - y).abs().max()) / size
    rounding = 3e-2 if is_rough else 2e-5
    return f"is {error:.1e} off, rounding {known:.1e}" if error > rounding + 60 * known else ""


def _largest(one: torch.Tensor) -> float:
    """Of what is finite."""
    if not one.numel() or not one.dtype.is_floating_point:
        return 0.0
    return float(one.double().nan_to_num(0.0, 0.0, 0.0).abs().max())


def _strides(a: torch.Tensor, b: torch.Tensor) -> str:
    one, other = ([s for s, n in zip(t.stride(), t.shape, strict=True) if n != 1] for t in (a, b))
    return f"has strides {one}, not {other}" if one != other and a.numel() else ""


def smallest(program: Program, is_wrong: Callable[[Program], bool]) -> Program:
    """Return a program without the lines that a wrong one does not need."""
    place = len(program.lines) - 1
    while place >= 0:
        fewer = program.without(place)
        try:
            program = fewer if is_wrong(fewer) else program
        except Exception:
            logging.getLogger(__name__).debug("no program", exc_info=True)
        place -= 1
    return program
