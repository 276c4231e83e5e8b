"""Launches one after another of attention whose φ runs, in the interpreter, each of them checked.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from triton.runtime.interpreter import interpreter_builder

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import DecodeKernel, build_decode
from overlapc.codegen.attention.kernel import AttentionKernel, build_attention
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import TEMPLATES
from overlapc.codegen.interpreting import correct_interpreter
from tests.codegen import attention_oracle as oracle
from tests.codegen.attention_cases import ROUNDING, SUMMED, Case, difference, mutated, operands
from tests.codegen.shuffled_grid import shuffled_grid

correct_interpreter()

SIZES = {"prefill": Case(batch=1), "decode": Case(rows=2, keys=60)}
SPLITS = 2
OF_SCORES = 1e-6
"""How much of the largest score a logarithm may be off by, and of a value for each nat. Chosen."""


@dataclass(frozen=True)
class Site:
    """A kernel, and what it remembers."""

    kernel: AttentionKernel | DecodeKernel
    case: Case
    phi: torch.Tensor

    @classmethod
    def of(cls, kind: str, text: str, change: tuple[str, str] | None) -> Site:
        """With a text of a template replaced, where ``change`` says so."""
        spec, case = AttentionSpec.parse(text), SIZES[kind]
        kernel = (
            build_attention(spec, AttentionTile(16, 16, 4, 1))
            if kind == "prefill"
            else build_decode(spec, Cache(), AttentionTile(16, 16, 4, 2))
        )
        if change:
            used = [path for path in TEMPLATES.glob("*.py") if not path.stem.startswith("gradient")]
            folder = kernel.path.parent
            (module,) = mutated([kernel.path.read_text()], change, folder, used)
            kernel = replace(kernel, module=module)
        heads = case.heads * spec.groups
        return cls(kernel, case, torch.zeros(heads))

    def launch(self, given: dict[str, Any], order: int = 0) -> Found:
        """Call it, programs in a random order; AssertionError unless the result is right.

        Logarithms of sums of rows that give NaN are not compared.
        """
        spec = self.kernel.spec
        shape = (*given["q"].shape[:3], spec.value_dim)
        out = torch.full(shape, torch.nan).to(getattr(torch, spec.dtype))
        lse, redone = torch.full(shape[:3], torch.nan), torch.zeros(1, dtype=torch.int32)
        named = {**given, "out": out, "lse": lse, "redone": redone, "phi": self.phi}
        workspace = None
        if isinstance(self.kernel, DecodeKernel):
            workspace = self.kernel.workspace(given["q"], SPLITS)
            named |= {"splits": SPLITS, "workspace": workspace}
        with shuffled_grid(random.Random(order)):
            self.kernel(**named)
        wanted, sums = oracle.attention(spec, **given)
        size = 1 + sums.nan_to_num(0, 0, 0).abs().max()
        of_values = ROUNDING[spec.dtype] + OF_SCORES * size
        error = difference(out, wanted)
        assert error <= of_values * given["v"].abs().max(), f"error {error}"
        lost = wanted.isnan().any(-1)
        off = difference(lse.masked_fill(lost, 0.0), sums.masked_fill(lost, 0.0))
        assert off <= (SUMMED[spec.dtype] + OF_SCORES) * size, f"logarithms of sums are {off} off"
        if workspace is not None:
            assert not workspace.moves.any(), "a launch does not clean up"
        return Found(out, sums, redone.item())


@dataclass(frozen=True)
class Found:
    """What a launch gave."""

    out: torch.Tensor
    sums: torch.Tensor
    redone: float


def drawn(site: Site, seed: int, shift: float, spread: float = 4.0) -> dict[str, Any]:
    """Random operands whose scores lie around ``shift``, by one element of each query and key."""
    spec = site.kernel.spec
    given = operands(spec, replace(site.case, seed=seed, spread=spread))
    given["q"][..., 0], given["k"][..., 0] = shift / spec.scale, 1.0
    return given


def redone(
    kind: str, text: str, shifts: Sequence[float], mutate: tuple[str, str] | None = None
) -> list[float]:
    """Of launches on other operands each, the share of rows that were computed twice."""
    site = Site.of(kind, text, mutate)
    found = [site.launch(drawn(site, seed, shift)) for seed, shift in enumerate(shifts)]
    return [one.redone / one.sums.numel() for one in found]


def settles(kind: str, text: str, mutate: tuple[str, str] | None = None) -> None:
    """Raise AssertionError unless a first launch redoes all rows, and a second none."""
    assert redone(kind, text, [300.0, 300.0], mutate) == [1.0, 0.0]


def spread(kind: str, text: str, by: float) -> list[float]:
    """The same of scores about zero."""
    site = Site.of(kind, text, None)
    found = [site.launch(drawn(site, seed, 0.0, by)) for seed in range(3)]
    return [one.redone / one.sums.numel() for one in found]


def orders(kind: str, text: str, mutate: tuple[str, str] | None = None) -> None:
    """Raise AssertionError unless programs in any order give equal bits and leave one φ."""
    site = Site.of(kind, text, mutate)
    site.phi[:] = 275  # some rows are within its range, and some are not
    before = site.phi.clone()
    given = drawn(site, 0, 300.0, 20.0)
    first = site.launch(given)
    assert 0 < first.redone < first.sums.numel(), "all rows are alike"
    after = site.phi.clone()
    assert not torch.equal(after, before)
    for order in range(1, 4):
        site.phi.copy_(before)
        again = site.launch(given, order)
        assert torch.equal(again.out, first.out), "another order gives other bits"
        assert torch.equal(site.phi, after), "another order leaves another φ"


def strange(kind: str, text: str, mutate: tuple[str, str] | None = None) -> None:
    """Raise AssertionError unless φ becomes the mean of rows beside rows that have no sum."""
    site = Site.of(kind, text, mutate)
    site = replace(site, case=replace(site.case, batch=2))
    given = drawn(site, 0, 300.0)
    given["q"][0, :, 0] = torch.nan
    if kind == "prefill":
        given["q"][0, :, 1, 0] = torch.inf
    (kept,) = given["inputs"]
    kept.fill_(True)[1] = False  # a sequence of padding alone
    found = site.launch(given)
    rows = found.sums.transpose(0, 1).flatten(1)
    means = [one[one.isfinite()].mean().item() for one in rows]
    assert not any(math.isnan(mean) for mean in means)
    for phi, mean in zip(site.phi.tolist(), means, strict=True):
        assert abs(phi - mean) <= 1.0, f"{phi} of rows around {mean}"


def stays(kind: str, text: str, mutate: tuple[str, str] | None = None) -> None:
    """Raise AssertionError unless φ stays where no row is redone, be it of NaN."""
    site = Site.of(kind, text, mutate)
    site.phi[:] = 280
    given = drawn(site, 0, 300.0)
    given["q"][0, :, 0] = torch.nan
    assert site.launch(given).redone == 0
    assert site.phi.eq(280).all(), "φ moves without need"


def disturbed(kind: str, text: str, mutate: tuple[str, str] | None = None) -> None:
    """Raise AssertionError unless results are right while another launch changes φ all the time."""
    site = Site.of(kind, text, mutate)
    given = drawn(site, 0, 300.0, 20.0)

    def change(at: int, split: int) -> None:
        site.phi[:] = (270, 330, 310)[at % 3]

    with between_programs(change):
        site.launch(given)


def lost(kind: str, text: str, mutate: tuple[str, str] | None = None) -> None:
    """Raise AssertionError unless keys count whose weights vanish beside a φ that other CTAs of the
    row do not read any more."""
    site = Site.of(kind, text, mutate)
    given = drawn(site, 0, 100.0)
    given["k"][:, :, 32:, 0] = 0.0  # the second part, whose scores lie about zero
    with between_programs(lambda at, split: site.phi.fill_((400.0, 0.0)[split])):
        site.launch(given)


@contextmanager
def between_programs(change: Callable[[int, int], object]) -> Iterator[None]:
    """Call it before every program of a launch, with a number that counts them, and its split."""
    builder: Any = interpreter_builder
    original, count = builder.set_grid_idx, 0

    def indexed(x: int, y: int, z: int) -> None:
        nonlocal count
        change(count, y)
        count += 1
        original(x, y, z)

    builder.set_grid_idx = indexed
    try:
        yield
    finally:
        builder.set_grid_idx = original


CALLS = {call.__name__: call for call in (settles, orders, strange, stays, disturbed, lost)}


def call(name: str, kind: str, text: str, mutate: tuple[str, str] | None = None) -> None:
    """Do one of ``CALLS``."""
    CALLS[name](kind, text, mutate)
