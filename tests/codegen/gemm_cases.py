"""One run of a generated GEMM in the interpreter, with everything about it checked.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from triton.runtime.interpreter import interpreter_builder

from overlapc.codegen import COUNTER_STRIDE, Bands, GemmSpec, Kernel, build
from overlapc.codegen.builder import TEMPLATES, load
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.codegen.oracle import error_over_bound, random_input, random_operand
from overlapc.codegen.packing import Packing, unpack
from tests.codegen.band_orders import rotated_bands, staged_bands

correct_interpreter()

POISON = 999
"""Counters beside the ones in use start with it, so that a stray bump is seen."""


def run(
    text: str,
    m: int,
    n: int,
    k: int,
    groups: Sequence[int] = (),
    *,
    placing: tuple[str, int] = ("of", 0),
    ctas: int = 3,
    sweep: int = 2,
    seed: int = 0,
    mutate: tuple[str, str] | None = None,
) -> None:
    """Raise AssertionError unless the kernel computes C and announces exactly what it stored.

    ``text`` is its spec; ``groups`` the rows of each band (none: one band), or its tiles where they
    are packed; ``placing`` how bands lie: ``of``, ``rotated`` by a number, ``staged`` for ranks.
    ``mutate`` is a text of the template or the module and what to put in its place: a mutant that
    the run must catch.
    """
    spec, generator = GemmSpec.parse(text), random.Random(seed)
    torch.manual_seed(seed)
    kernel = mutant(build(spec), mutate) if mutate else build(spec)
    announced = announce(spec, m, n, groups, placing, sweep)
    packed = isinstance(announced, Packing)
    a = random_operand(spec.a, m, k, spec.dtype, "cpu")
    b = random_operand(spec.b, k, n, spec.dtype, "cpu")
    inputs = [random_input(item, m, n, "cpu") for item in spec.chain.inputs]

    count = len(announced.slices)
    targets = announced.targets if packed else announced.targets(kernel.tiles_n(n))
    counters = torch.full((count + 1, COUNTER_STRIDE), POISON, dtype=torch.int32)
    counters[:count, 0] = 0
    untouched = counters.clone()
    # Rows, or elements, beyond C, so that a store outside it is seen.
    margin = spec.block_m * (spec.block_n if packed else 1)
    shape = (announced.order.elements,) if packed else (m, n)
    around = torch.full((shape[0] + 2 * margin, *shape[1:]), torch.nan).to(_dtype(spec.out))
    c = around[margin : margin + shape[0]]
    table = torch.tensor(announced.table, dtype=torch.int32)
    written = torch.ones(shape, dtype=torch.bool)
    if packed:
        written = torch.zeros(shape, dtype=torch.bool)
        written[unpack(torch.arange(shape[0]), announced.order).flatten()] = True

    def after_bump() -> None:
        for group, piece in enumerate(announced.slices):
            if counters[group, 0] >= targets[group]:
                missing = c[piece].float().isnan() & written[piece]
                assert not missing.any(), f"group {group} is announced before it is stored"

    with shuffled_programs(generator), after_every_bump(after_bump):
        kernel(a, b, c, ctas=ctas, sweep=sweep, inputs=inputs, bands=table, counters=counters)

    whole = c.float()
    assert not whole[written].isnan().any(), "an element of C was never written"
    assert whole[~written].isnan().all(), "an element beside C was written"
    natural = unpack(c, announced.order) if packed else in_order(c, announced)
    assert error_over_bound(spec, a, b, None, natural, inputs) <= 1
    outside = torch.cat((around[:margin], around[margin + shape[0] :])).float()
    assert outside.isnan().all(), "a store fell outside C"
    if spec.signals:
        untouched[:count, 0] = torch.tensor(targets)
    assert torch.equal(counters, untouched), f"counters {counters[:, 0].tolist()} for {targets}"


def announce(
    spec: GemmSpec,
    m: int,
    n: int,
    groups: Sequence[int],
    placing: tuple[str, int],
    sweep: int,
) -> Any:
    """The groups of a run."""
    if spec.order == "packed":
        tiles = -(-m // spec.block_m) * -(-n // spec.block_n)
        return Packing.of(spec, m, n, groups or (tiles,), sweep)
    way, number = placing
    if way == "of":
        return Bands.of(groups or (m,), spec.block_m)
    if way == "rotated":
        return rotated_bands(groups, spec.block_m, number)
    return staged_bands(groups, number, spec.block_m, first=number - 1)


def in_order(c: torch.Tensor, bands: Bands) -> torch.Tensor:
    """The rows of C as those of A @ B lie."""
    natural = torch.empty_like(c)
    for run in (run for runs in bands.runs for run in runs):
        natural[run.source :][: run.rows] = c[run.target :][: run.rows]
    return natural


def tile_order(
    text: str, m: int, n: int, rows: Sequence[int], placing: tuple[str, int] = ("of", 0)
) -> list[int]:
    """The band of every bump, in order, when one program runs all tiles of C[m, n]."""
    spec = GemmSpec.parse(text)
    bands = announce(spec, m, n, rows, placing, 2)
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
        kernel(a, b, c, ctas=1, sweep=2, bands=torch.tensor(bands.table, dtype=torch.int32),
               counters=counters)  # fmt: skip
    return order


@contextmanager
def shuffled_programs(generator: random.Random) -> Iterator[None]:
    """Run the programs of every launch in a random order: nothing may depend on it."""
    builder: Any = interpreter_builder
    set_index, set_size = builder.set_grid_idx, builder.set_grid_dim
    order: list[tuple[int, int]] = []

    def sized(x: int, y: int, z: int) -> None:
        programs = [(i, j) for i in range(x) for j in range(y)]
        order[:] = generator.sample(programs, len(programs))
        builder.set_grid_idx = lambda i, j, z: set_index(*order[i * y + j], z)
        set_size(x, y, z)

    builder.set_grid_dim = sized
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
    """The kernel on a template, or in a module, in which one text is replaced."""
    old, new = change
    file, text = kernel.path, kernel.path.read_text()
    if old not in text:
        file = next(file for file in TEMPLATES.glob("*.py") if old in file.read_text())
        text = file.read_text()
    assert text.count(old) == 1, f"there is no single {old!r} to mutate"
    path = kernel.path.with_name(f"mutant_{abs(hash(change))}.py")
    path.write_text(text.replace(old, new))
    changed = load(path)
    if file == kernel.path:
        return replace(kernel, module=changed)
    module = ModuleType(path.stem)
    module.__dict__.update(load(kernel.path).__dict__)
    if file.stem == "gemm":
        module.__dict__["KERNEL"] = changed.band_gemm
    elif file.stem == "signal":
        # The template finds them among its globals, so in a copy of its own.
        template = load(TEMPLATES / "gemm.py")
        for part in ("announce", "announce_late", "await_stores", "publish"):
            template.__dict__[part] = getattr(changed, part)
        module.__dict__["KERNEL"] = template.band_gemm
    else:
        # The epilogue finds what it calls among its globals.
        module.CONSTANTS["EPILOGUE"].fn.__globals__[file.stem] = changed
    return replace(kernel, module=module)


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)
