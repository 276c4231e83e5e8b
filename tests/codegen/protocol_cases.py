"""Producer and consumer of signals in two processes of Triton's interpreter, on one mapped file."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from triton.runtime.interpreter import GridExecutor

from overlapc.codegen import COUNTER_STRIDE, Bands, GemmSpec, build
from overlapc.codegen.oracle import error_over_bound, random_operand
from overlapc.runtime.signals import Signals

sys.path.insert(0, str(Path(__file__).parent))
from gemm_cases import shuffled_programs

CPU = torch.device("cpu")


def mapped(path: str, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that every process sees which maps the same file."""
    size = torch.Size(shape).numel()
    return torch.from_file(f"{path}/{name}", shared=True, size=size, dtype=dtype).view(shape)


def shared(path: str, spec: GemmSpec, m: int, n: int, bands: Bands) -> tuple[torch.Tensor, Signals]:
    """C and its counters; the files start as zeros."""
    c = mapped(path, "c", (m, n), getattr(torch, spec.out))
    counters = mapped(path, "counters", (len(bands.rows) + 1, COUNTER_STRIDE), torch.int32)
    table = torch.tensor(bands.table, dtype=torch.int32)
    return c, Signals(counters, table, bands.targets(build(spec).tiles_n(n)))


@contextmanager
def arguments_in_place() -> Iterator[None]:
    """Keep the interpreter from copying arguments back: that would undo another process's adds."""
    executor: Any = GridExecutor
    restore = executor._restore_args_dev
    executor._restore_args_dev = lambda *_: None
    try:
        yield
    finally:
        executor._restore_args_dev = restore


def produce(path: str, text: str, m: int, n: int, k: int, rows: Sequence[int], seed: int) -> float:
    """Run the GEMM into the shared C; the error of C over what is allowed."""
    spec = GemmSpec.parse(text)
    bands = Bands.of(rows, spec.block_m)
    torch.manual_seed(seed)
    a = random_operand(spec.a, m, k, spec.dtype, "cpu")
    b = random_operand(spec.b, k, n, spec.dtype, "cpu")
    c, signals = shared(path, spec, m, n, bands)
    with shuffled_programs(random.Random(seed)), arguments_in_place():
        build(spec)(a, b, c, ctas=4, bands=signals.bands, counters=signals.counters)
    return error_over_bound(spec, a, b, None, c)


def consume(path: str, text: str, m: int, n: int, rows: Sequence[int], max_polls: int) -> list[Any]:
    """Wait for every band as the runner does; what stood in C at that moment, band by band."""
    spec = GemmSpec.parse(text)
    bands = Bands.of(rows, spec.block_m)
    c, signals = shared(path, spec, m, n, bands)
    received = []
    with arguments_in_place():
        for group, band in enumerate(bands.slices):
            signals.wait(group, max_polls)
            signals.raise_if_given_up()
            received.append(c[band].tolist())
    return received
