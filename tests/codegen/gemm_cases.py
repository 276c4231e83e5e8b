"""One run of a generated GEMM in the interpreter, with everything about it checked.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from triton.runtime.interpreter import interpreter_builder

from overlapc.codegen import COUNTER_STRIDE, Bands, GemmSpec, Kernel, build
from overlapc.codegen.builder import load
from overlapc.codegen.oracle import error_over_bound, random_operand
from overlapc.codegen.templates import gemm as template

POISON = 999
"""Counters beside the ones in use start with it, so that a stray bump is seen."""


def run(
    text: str,
    m: int,
    n: int,
    k: int,
    rows: Sequence[int] = (),
    *,
    ctas: int = 3,
    seed: int = 0,
    mutate: tuple[str, str] | None = None,
) -> None:
    """Raise AssertionError unless the kernel computes C and announces exactly what it stored.

    ``text`` is its spec, ``rows`` those of each band (none: one band), ``mutate`` a text of the
    template and what to put in its place: a mutant that the run must catch.
    """
    spec, generator = GemmSpec.parse(text), random.Random(seed)
    torch.manual_seed(seed)
    bands = Bands.of(rows or (m,), spec.block_m)
    kernel = mutant(build(spec), mutate) if mutate else build(spec)
    a = random_operand(spec.a, m, k, spec.dtype, "cpu")
    b = random_operand(spec.b, k, n, spec.dtype, "cpu")
    bias = random_operand("row", 1, n, spec.dtype, "cpu")[0] if spec.bias else None

    groups = len(bands.rows)
    targets = bands.targets(kernel.tiles_n(n))
    counters = torch.full((groups + 1, COUNTER_STRIDE), POISON, dtype=torch.int32)
    counters[:groups, 0] = 0
    untouched = counters.clone()
    # Rows beyond C, so that a store outside it is seen.
    around = torch.full((m + 2 * spec.block_m, n), torch.nan, dtype=_dtype(spec.out))
    c = around[spec.block_m : spec.block_m + m]
    table = torch.tensor(bands.table, dtype=torch.int32)

    def after_bump() -> None:
        for group, rows in enumerate(bands.slices):
            if counters[group, 0] >= targets[group]:
                assert not c[rows].isnan().any(), f"band {group} is announced before it is stored"

    with shuffled_programs(generator), after_every_bump(after_bump):
        kernel(a, b, c, ctas=ctas, bias=bias, bands=table, counters=counters)

    assert not c.isnan().any(), "an element of C was never written"
    assert error_over_bound(spec, a, b, bias, c) <= 1
    outside = torch.cat((around[: spec.block_m], around[spec.block_m + m :]))
    assert outside.isnan().all(), "a store fell outside C"
    if spec.signals:
        untouched[:groups, 0] = torch.tensor(targets)
    assert torch.equal(counters, untouched), f"counters {counters[:, 0].tolist()} for {targets}"


def tile_order(text: str, m: int, n: int, rows: Sequence[int]) -> list[int]:
    """The band of every bump, in order, when one program runs all tiles of C[m, n]."""
    spec = GemmSpec.parse(text)
    bands = Bands.of(rows, spec.block_m)
    kernel = build(spec)
    a, b = torch.randn(m, 16).to(_dtype(spec.dtype)), torch.randn(n, 16).to(_dtype(spec.dtype)).t()
    c = torch.empty(m, n, dtype=_dtype(spec.out))
    counters = torch.zeros(len(rows), COUNTER_STRIDE, dtype=torch.int32)
    order: list[int] = []
    seen = counters[:, 0].tolist()

    def after_bump() -> None:
        now = counters[:, 0].tolist()
        order.extend(group for group in range(len(rows)) if now[group] != seen[group])
        seen[:] = now

    with after_every_bump(after_bump):
        kernel(a, b, c, ctas=1, bands=torch.tensor(bands.table, dtype=torch.int32),
               counters=counters)  # fmt: skip
    return order


@contextmanager
def shuffled_programs(generator: random.Random) -> Iterator[None]:
    """Run the programs of every launch in a random order: nothing may depend on it."""
    builder: Any = interpreter_builder
    set_index, set_size = builder.set_grid_idx, builder.set_grid_dim
    order: list[int] = []

    def sized(x: int, y: int, z: int) -> None:
        order[:] = generator.sample(range(x), x)
        set_size(x, y, z)

    builder.set_grid_dim = sized
    builder.set_grid_idx = lambda x, y, z: set_index(order[x], y, z)
    try:
        yield
    finally:
        builder.set_grid_idx, builder.set_grid_dim = set_index, set_size


@contextmanager
def after_every_bump(check: Any) -> Iterator[None]:
    """Call ``check`` whenever an atomic add has been done."""
    builder: Any = interpreter_builder
    add = builder.create_atomic_rmw

    def checked(*arguments: Any) -> Any:
        result = add(*arguments)
        check()
        return result

    builder.create_atomic_rmw = checked
    try:
        yield
    finally:
        builder.create_atomic_rmw = add


def mutant(kernel: Kernel, change: tuple[str, str]) -> Kernel:
    """The kernel on a template in which one text is replaced."""
    source = Path(str(template.__file__)).read_text()
    old, new = change
    assert source.count(old) == 1, f"the template has no single {old!r} to mutate"
    path = kernel.path.with_name(f"mutant_{abs(hash(change))}.py")
    path.write_text(source.replace(old, new))
    module = ModuleType(path.stem)
    module.__dict__.update(load(kernel.path).__dict__)
    module.__dict__["KERNEL"] = load(path).band_gemm
    return replace(kernel, module=module)


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)
