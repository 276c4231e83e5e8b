"""The emulated link in the interpreter, its clock replaced by the host's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime.interpreter import interpreter_builder

from benchmarks.gpu.gemm import emulated_link
from benchmarks.gpu.gemm.emulated_link import EmulatedLink

FAST = EmulatedLink("test", ranks=4, bytes_per_second=1e12, alpha_seconds=0, ctas=3)


@contextmanager
def host_clock(module: Any = emulated_link) -> Iterator[None]:
    """Let a module's kernels read the host's clock: the interpreter has no device."""
    before, module.globaltimer = module.globaltimer, time.monotonic_ns
    try:
        yield
    finally:
        module.globaltimer = before


def copies_whole_bands(collective: str, rows: int, columns: int) -> tuple[float, float]:
    """Link bytes and the bytes that the kernel stored, after checking what it stored."""
    band = torch.randn(rows, columns)
    kept = torch.full((columns,), torch.nan) if collective == "reduce_scatter" else None
    first = (rows - 1) * columns
    around = torch.full((rows + 2, columns), torch.nan)
    stored = 0
    builder: Any = interpreter_builder
    store = builder.create_masked_store

    def counted(pointer: Any, value: Any, mask: Any, *rest: Any) -> Any:
        nonlocal stored
        stored += int(mask.data.sum()) * band.element_size()
        return store(pointer, value, mask, *rest)

    builder.create_masked_store = counted
    try:
        FAST.move(collective, band, around[1:-1], kept, first, paced=False)
    finally:
        builder.create_masked_store = store
    assert torch.equal(around[1:-1], band)
    assert kept is None or torch.equal(kept, band[-1])
    assert around[0].isnan().all()
    assert around[-1].isnan().all()
    return FAST.link_bytes(band.numel() * band.element_size(), collective), stored


def takes_its_time(seconds: float) -> tuple[float, float]:
    """The time that a band is to take, one CTA, and the least time that it took of three."""
    band = torch.randn(4, emulated_link.BLOCK)
    size = band.numel() * band.element_size()
    link = EmulatedLink("slow", 2, size / seconds, alpha_seconds=seconds, ctas=1)
    taken = []
    with host_clock():
        for _ in range(3):  # other work on the machine may hold one up
            start = time.monotonic()
            link.move("all_reduce", band, torch.empty_like(band))
            taken.append(time.monotonic() - start)
    return link.seconds(size), min(taken)
