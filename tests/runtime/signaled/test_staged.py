"""Staged GEMMs on a device that does everything in any order that it is allowed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu.gemm.chains import Unordered
from overlapc.codegen import Bands, GemmSpec
from overlapc.codegen.packing import pack, unpack
from overlapc.errors import KernelError
from overlapc.planning.packed_order import PackedOrder
from overlapc.runtime.cutting import columns
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.signaled import staged_sending, streams
from overlapc.runtime.signaled.staged import StagedGemm
from tests.runtime.signaled.fake_gpu import (
    SMS,
    Deadlock,
    Driver,
    Gpu,
    Graph,
    Work,
    in_memory_of,
    present,
)

BLOCK, K, N = 16, 3, 24
"""Tiles are not whole where groups end."""
SPEC = GemmSpec("float32", "float32", BLOCK, BLOCK, BLOCK)
RANKS, ME = 3, 1
COUNTS = (18, 9, 27)
"""Rows of each group, of every rank where dimension 0 is dealt out."""
TILES = (1, 4, 3)
"""Tiles of each group, where they are packed: four tile rows of two."""
KINDS = [
    ("all_reduce", 0),
    ("reduce_scatter", 0),
    ("reduce_scatter", 1),
    ("all_to_all", 0),
    ("all_to_all", 1),
]


class Gemm:
    """A kernel that stores tiles where the runs of its bands say, in a random order."""

    spec = SPEC
    bands: Any

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def tiles_n(self, n: int) -> int:
        return -(-n // BLOCK)

    def __call__(self, a, b, c, *, ctas, sweep, bands, counters, inputs) -> None:
        assert (ctas, sweep) == (SMS - 2, 4)
        (scale,) = inputs
        assert tuple(bands.tolist()) == self.bands.table
        self.gpu.load("GEMM")

        def tile(group: int, source: int, target: int, rows: int, column: int) -> None:
            part = slice(column, column + BLOCK)
            product = scale * (a[source : source + rows] @ b[:, part])
            c[target : target + rows, part] = product
            counters[group, 0] += 1

        tiles = [
            (group, run.source + at, run.target + at, min(BLOCK, run.rows - at), column)
            for group, runs in enumerate(self.bands.runs)
            for run in runs
            for at in range(0, run.rows, BLOCK)
            for column in range(0, N, BLOCK)
        ]
        steps = [lambda its=its: tile(*its) for its in self.gpu.random.sample(tiles, len(tiles))]
        self.gpu.gemm = Work("GEMM", steps)
        self.gpu.enqueue(self.gpu.gemm)


class PackedGemm(Gemm):
    """A kernel that stores whole tiles where they lie in packed order."""

    spec = replace(SPEC, order="packed")

    def __call__(self, a, b, c, *, ctas, sweep, bands, counters, inputs) -> None:
        (scale,), order = inputs, self.bands.order
        order = replace(order, tile=order.tile.swept(sweep))
        assert tuple(bands.tolist()) == self.bands.table
        assert c.shape == (order.elements,)
        self.gpu.load("GEMM")

        def tile(index: int) -> None:
            part = slice(index * order.tile.elements, (index + 1) * order.tile.elements)
            c[part] = pack(scale * (a @ b), order)[part]
            counters[self.bands.table[index], 0] += 1

        tiles = self.gpu.random.sample(range(order.tiles), order.tiles)
        self.gpu.gemm = Work("GEMM", [lambda index=index: tile(index) for index in tiles])
        self.gpu.enqueue(self.gpu.gemm)


class Sends:
    """Collectives among ranks of which number r has r + 1 times what this rank has."""

    def __init__(self, gpu: Gpu, collective: str) -> None:
        self.gpu, self.collective, self.reduce, self.sent = gpu, collective, "sum", 0

    def start(self, group: Any, out, sent, receives, sends) -> Any:
        assert (group, tuple(receives), tuple(sends)) == ("group", (), ())
        assert out.is_contiguous()
        assert sent.is_contiguous()
        self.gpu.load(f"collective {sent.numel().bit_length()}")
        self.gpu.enqueue(Work(f"collective {self.sent}", [lambda: self._move(out, sent)]))
        self.sent = (self.sent + 1) % len(COUNTS)
        if not self.sent:
            self.gpu.gemm = None
        return SimpleNamespace(wait=lambda: None)

    def _move(self, out: torch.Tensor, sent: torch.Tensor) -> None:
        if self.collective == "all_reduce":
            out = sent
        out.copy_(of_all_ranks(self.collective, sent))


def of_all_ranks(collective: str, sent: torch.Tensor) -> torch.Tensor:
    if collective == "all_reduce":
        return sum(r + 1 for r in range(RANKS)) * sent
    mine = sent.chunk(RANKS)[ME]
    if collective == "reduce_scatter":
        return sum(r + 1 for r in range(RANKS)) * mine
    return torch.cat([(r + 1) * mine for r in range(RANKS)])


class Call:
    """A staged GEMM with its operands."""

    def __init__(self, gpu: Gpu, kind: str, axis: int, seed: int) -> None:
        self.gpu, self.kind, self.axis = gpu, kind, axis
        self.units = sum(COUNTS) * (1 if kind == "all_reduce" or axis else RANKS)
        deal = Dealing(kind, axis, self.units, RANKS, ME)
        kernel, sender = Gemm(gpu), Sends(gpu, kind)
        fakes: Any = (kernel, sender)
        self.gemm = StagedGemm.of(
            *fakes, producer_parts(deal, COUNTS), result_units=deal.result_units,
            across=RANKS if axis else 1, first_run=ME, sweep=4,
        )  # fmt: skip
        kernel.bands = self.gemm.bands
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.randn(self.units, K, generator=generator)
        self.b = torch.randn(K, N, generator=generator)
        self.scale = torch.tensor(2.0)

    def __call__(self) -> torch.Tensor:
        group: Any = "group"
        with in_memory_of(self.gpu):
            return self.gemm(self.a, self.b, group, 2, name="tp", inputs=[self.scale])

    def is_warm(self, name: str = "tp") -> bool:
        return streams.is_warm(self.gemm._needed((self.a, self.b, self.scale), name))

    def expected(self) -> torch.Tensor:
        c = self.scale * (self.a @ self.b)
        return of_all_ranks(self.kind, columns.pack(c, RANKS) if self.axis else c)

    def read(self, out: torch.Tensor) -> torch.Tensor:
        return out

    def use(self, out: torch.Tensor) -> None:
        def consume() -> None:
            torch.testing.assert_close(self.read(out), self.expected(), rtol=1e-5, atol=1e-4)
            self.a.mul_(-1.5)

        self.gpu.enqueue(Work("consumer", [consume]))


class PackedCall(Call):
    """One whose groups are of tiles."""

    def __init__(self, gpu: Gpu, kind: str, axis: int, seed: int) -> None:
        super().__init__(gpu, "all_reduce", 0, seed)
        self.order = PackedOrder(self.units, N, PackedGemm.spec.tile.swept(2))
        deal = Dealing("all_reduce", 0, self.order.tiles, RANKS, ME)
        kernel = PackedGemm(gpu)
        fakes: Any = (kernel, Sends(gpu, "all_reduce"))
        self.gemm = StagedGemm.packed(*fakes, producer_parts(deal, TILES), self.order)
        kernel.bands = self.gemm.bands

    def read(self, out: torch.Tensor) -> torch.Tensor:
        return unpack(out, self.order)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("kind", "axis"), [*KINDS, ("packed", 0)])
def test_results_are_pytorchs_in_every_order(kind, axis, seed):
    gpu = Gpu(seed, one_queue=seed % 2 == 1)
    with present(gpu, Driver(gpu)):
        call = (PackedCall if kind == "packed" else Call)(gpu, kind, axis, seed)
        for _ in range(3):
            call.use(call())
        gpu.synchronize()
        graph = Graph(gpu)
        graph.capture_begin()
        call.use(call())
        graph.capture_end()
        for _ in range(3):
            graph.replay()
        gpu.synchronize()


@pytest.mark.parametrize("kind", ["reduce_scatter", "all_to_all"])
def test_columns_that_are_not_packed_are_seen(kind, monkeypatch):
    def unpacked(band: torch.Tensor, packed: torch.Tensor, across: int) -> None:
        packed.view(-1).copy_(band.view(-1))

    monkeypatch.setattr(staged_sending, "_pack", unpacked)
    gpu = Gpu()
    with present(gpu, Driver(gpu)):
        call = Call(gpu, kind, 1, 0)
        call.use(call())
        with pytest.raises(AssertionError):
            gpu.synchronize()


@pytest.mark.parametrize("kind", ["reduce_scatter", "all_to_all"])
def test_bands_that_are_not_staged_are_seen(kind):
    gpu = Gpu()
    with present(gpu, Driver(gpu)):
        call = Call(gpu, kind, 0, 0)
        runs = call.gemm.bands.runs
        straight = tuple(tuple(replace(r, target=r.source) for r in group) for group in runs)
        kernel: Any = call.gemm.kernel
        kernel.bands = Bands(straight, BLOCK)
        call.gemm = replace(call.gemm, bands=kernel.bands)
        call.use(call())
        with pytest.raises(AssertionError):
            gpu.synchronize()


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
def test_the_bound_of_a_benchmark_waits_for_no_tile(kind):
    """So its results are wrong in some order, and it never hangs."""
    wrong = 0
    for seed in range(20):
        gpu = Gpu(seed)
        with present(gpu, Driver(gpu)):
            call = Call(gpu, kind, 0, seed)
            call.use(call())
            gpu.synchronize()
            bands = call.gemm.bands
            call.gemm = replace(call.gemm, bands=Unordered(bands.runs, bands.block_m))
            call.use(call())
            try:
                gpu.synchronize()
            except Deadlock:
                raise
            except AssertionError:
                wrong += 1
    assert wrong > 0


def test_a_first_call_in_a_capture_launches_and_sends_nothing():
    gpu = Gpu()
    with present(gpu, Driver(gpu)):
        call = Call(gpu, "reduce_scatter", 0, 0)
        graph = Graph(gpu)
        graph.capture_begin()
        with pytest.raises(KernelError, match="during graph capture"):
            call()
        assert gpu.issued == ["capture begins"]
        graph.capture_end()


def test_a_collective_of_the_other_kind_is_not_warm():
    gpu = Gpu()
    with present(gpu, Driver(gpu)):
        call = Call(gpu, "reduce_scatter", 0, 0)
        call()
        gpu.synchronize()
        other = Call(gpu, "all_to_all", 0, 0)
        assert call.is_warm()
        assert not other.is_warm()
        assert not call.is_warm("dp")
