"""Measure one group: its GEMMs, its all-reduce, and what they do to each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

from overlapc.planning.fitting import (
    GemmSample,
    Pipeline,
    SideBySide,
    fit_gemm,
    rising_curve,
    rounded,
    sustained_curve,
)
from overlapc.planning.problem import ITEM_BYTES, Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target
from overlapc.runtime.groups import backend_name

GEMM_ROWS = (16, 32, 64, 128, 256, 512)
GEMM_WIDTHS = ((1024, 1024), (2048, 2048), (1024, 4096), (4096, 1024), (4096, 4096))
"""Columns and contracted sizes: chosen to span what the shards of a small model have."""

FEWEST_SAMPLES = 10
"""For three rates; where time runs out after them, larger GEMMs are left out."""

SMALLEST_BYTES, LARGEST_BYTES = 1 << 12, 1 << 25
"""Collectives measured, by factors of two: from pure latency to pure bandwidth."""

ENOUGH_BYTES = 1 << 20
"""Measured however long it takes: below it, a curve may know latency only."""

TRAIN = 6
"""Calls in a train of asynchronous ones: about as many as plans have groups."""

MOST_ROUNDS = 5
"""Of one size: their median is steady enough."""

REST_SECONDS = 0.02
"""Of compute before a timed collective, about what comes before one in a model: caches are warm
with other things, and a link that saves up credit while idle has saved it up."""

SIDE_BY_SIDE_BYTES = 1 << 20
"""Of each collective that GEMMs are run beside, or less on a slow link: as large as groups are."""

ROUNDS_SIDE_BY_SIDE = 5
"""Of which the median is taken."""

GEMM_BESIDE = (32, 2048, 2048)
"""Rows, columns and contracted size of the GEMM that runs before and beside collectives: a few
milliseconds on a core, so that many fit, and like a plan's small groups, which feel it most."""

PIPELINED = 16
"""Groups of a pipeline that is run to see what a group costs beside its GEMM."""


@dataclass(frozen=True)
class Bench:
    """One rank's stopwatch for a group whose members all do the same at the same time."""

    group: dist.ProcessGroup
    device: torch.device
    """Where this rank computes."""
    backend: str
    """Of the group, as torch names it."""
    world_size: int

    @staticmethod
    def of(group: dist.ProcessGroup | None) -> Bench:
        """The bench of a group, or of the default one; ValueError where there is none."""
        group = group or dist.group.WORLD
        if group is None:
            raise ValueError("there is no default process group.")
        # A group of several backends is measured where its GPUs are.
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        backend, size = backend_name(group, kind), dist.get_world_size(group)
        if size < 1:
            raise ValueError("this process is no member of the group.")
        device = torch.device("cpu")
        if backend == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        return Bench(group, device, backend, size)

    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes to measure GEMMs of."""
        return ("float32", "bfloat16") if self.device.type == "cuda" else ("float32",)

    def architecture(self) -> str:
        """What kernels are generated for here, such as ``sm_90``; empty on a processor."""
        if self.device.type != "cuda":
            return ""
        if torch.version.hip:
            return torch.cuda.get_device_properties(self.device).gcnArchName.split(":")[0]
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"sm_{major}{minor}"

    def conditions(self) -> str:
        """What was measured, for the target's source."""
        what = f"{torch.get_num_threads()} threads a rank"
        if self.device.type == "cuda":
            what = torch.cuda.get_device_name(self.device)
        return f"measured by overlapc calibrate: {what}, torch {torch.__version__}"

    # Seconds and agreement

    def now(self) -> float:
        """Seconds, after everything issued on this rank is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, call: Callable[[], Any]) -> float:
        """Seconds of one call on this rank."""
        start = self.now()
        call()
        return self.now() - start

    def together(self) -> None:
        """Wait until every member is here."""
        dist.barrier(self.group)

    def slowest(self, seconds: float) -> float:
        """The largest of the members' values, on all of them: what decisions are made from."""
        value = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX, self.group)
        return float(value)

    def agree(self, target: Target) -> Target:
        """Rank 0's target on every member."""
        agreed: list[Any] = [target]
        dist.broadcast_object_list(agreed, group=self.group, group_src=0)
        return agreed[0]

    # GEMM

    def gemm(self, dtype: str, seconds: float) -> GemmRates:
        """Rates of ``torch.mm`` into rows of an output, while all members compute."""
        shapes = sorted(product(GEMM_ROWS, GEMM_WIDTHS), key=lambda s: s[0] * s[1][0] * s[1][1])
        share, spent = seconds / len(shapes), 0.0
        samples: list[GemmSample] = []
        for rows, (n, k) in shapes:
            if spent > seconds and len(samples) >= FEWEST_SAMPLES:
                break
            call = self._mm(rows, n, k, dtype)
            call()
            self.together()
            taken = self.slowest(statistics.median(self._repeat(call, share)))
            samples.append(GemmSample(rows, n, k, taken))
            spent += max(share, 3 * taken)
        return fit_gemm(self._gemm_shape(dtype), samples, ITEM_BYTES[dtype])

    def _gemm_shape(self, dtype: str) -> GemmRates:
        if self.device.type == "cpu":
            return GemmRates(dtype, 1.0, 0.0, pack_bytes_per_second=1.0)
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return GemmRates(dtype, 1.0, 0.0, tile_rows=128, tile_columns=256, resident=processors)

    def _mm(self, rows: int, n: int, k: int, dtype: str) -> Callable[[], Any]:
        kind = getattr(torch, dtype)
        left, right = (
            torch.randn(shape, device=self.device).to(kind) for shape in ((rows, k), (k, n))
        )
        out = torch.empty(rows, n, dtype=kind, device=self.device)
        return lambda: torch.mm(left, right, out=out)

    def _repeat(self, call: Callable[[], Any], seconds: float) -> list[float]:
        """Times of at least two calls, and of as many as fit."""
        times = [self.seconds(call), self.seconds(call)]
        while sum(times) < seconds:
            times.append(self.seconds(call))
        return times

    # Collectives

    def all_reduce(self, seconds: float) -> Link:
        """The curve of ``all_reduce``, alone and in trains; stops growing when time runs out."""
        points: list[_Point] = []
        size, spent = SMALLEST_BYTES, 0.0
        share = seconds / (LARGEST_BYTES // SMALLEST_BYTES).bit_length()
        # The next size takes at most twice as long as this one.
        while size <= ENOUGH_BYTES or (
            size <= LARGEST_BYTES and spent + 2 * points[-1].spent < seconds
        ):
            points.append(self._point(size, share, points[-1] if points else None))
            spent += points[-1].spent
            size *= 2
        return Link(
            "all_reduce",
            self.world_size,
            rising_curve((point.size, point.alone) for point in points),
            sustained_curve((point.size, point.queued) for point in points),
            rounded(statistics.median(point.issued for point in points)),
        )

    def _point(self, size: int, seconds: float, before: _Point | None) -> _Point:
        """One size of the curve, in about ``seconds``; calls that take long are few."""
        start = self.now()
        buffers = [self._buffer(size) for _ in range(TRAIN)]
        once = self.slowest(self._train(buffers[:1]).seconds)
        rounds = min(MOST_ROUNDS, int(seconds / (2 * REST_SECONDS + (1 + TRAIN) * once)))
        single = [self._train(buffers[:1]) for _ in range(max(2, rounds))]
        trains = [self._train(buffers) for _ in range(rounds)]
        alone = self.slowest(_undisturbed([train.seconds for train in single]))
        issued = self.slowest(_undisturbed([train.issued for train in single]))
        if trains:
            # The first call of a train finds the link idle, and the others queue behind it.
            lasted = self.slowest(statistics.median(train.seconds for train in trains))
            queued = (lasted - alone) / (TRAIN - 1)
        else:
            # What tells the two apart is latency, which does not grow with the size.
            queued = alone + (before.queued - before.alone if before else 0.0)
        # Where noise swapped two times, what is left must still be a time.
        queued = max(queued, alone / TRAIN)
        return _Point(size, alone, queued, issued, self.slowest(self.now() - start))

    def _buffer(self, size: int) -> torch.Tensor:
        # Zeros stay finite however often they are added up; time does not depend on values.
        return torch.zeros(size // 4, device=self.device)

    def _start(self, buffers: Sequence[torch.Tensor]) -> list[dist.Work]:
        works = [dist.all_reduce(b, group=self.group, async_op=True) for b in buffers]
        return [work for work in works if work is not None]

    def _train(self, buffers: Sequence[torch.Tensor]) -> _Train:
        """One asynchronous call a buffer, after a while of compute: as they come in a schedule."""
        self._rest()
        start = self.now()
        works = self._start(buffers)
        issued = (time.perf_counter() - start) / len(buffers)
        for work in works:
            work.wait()
        return _Train(self.now() - start, issued)

    def _rest(self) -> None:
        """Let links idle while this rank computes, until every member is here."""
        mm = self._mm(*GEMM_BESIDE, "float32")
        start = self.now()
        while self.now() - start < REST_SECONDS:
            mm()
        self.together()

    # Contention

    def contention(self, link: Link, seconds: float) -> tuple[float, float]:
        """How much slower compute and link run beside each other: (c, d), medians of rounds."""
        # A round is a train alone, GEMMs alone and both together: about 2.5 trains long.
        train_seconds = seconds / ROUNDS_SIDE_BY_SIDE / 2.5
        size = SIDE_BY_SIDE_BYTES
        while size > SMALLEST_BYTES and TRAIN * link.queued.seconds(size) > train_seconds:
            size //= 2
        count = int(train_seconds / link.queued.seconds(size))
        buffers = [self._buffer(size) for _ in range(max(TRAIN, min(64, count)))]
        whole = self.slowest(self._train(buffers).seconds)
        mm = self._mm(*GEMM_BESIDE, "float32")
        one = self.slowest(statistics.median(self._repeat(mm, 0.05)))
        # Half as long as the train, so the link stays busy while they run.
        gemms = range(max(1, int(0.5 * whole / one)))
        found = [
            self._side_by_side(buffers, lambda: [mm() for _ in gemms])
            for _ in range(ROUNDS_SIDE_BY_SIDE)
        ]
        c = statistics.median(both.compute_slowdown for both in found)
        d = statistics.median(both.link_slowdown for both in found)
        return rounded(self.slowest(c)), rounded(self.slowest(d))

    def pipeline(self, link: Link, seconds: float) -> Pipeline:
        """A chunked schedule of small equal groups, as a plan would run it."""
        rows, n, k = GEMM_BESIDE
        problem = Problem(rows * PIPELINED, n, k, "float32", "all_reduce", self.world_size)
        left, right = (torch.randn(size, device=self.device) for size in ((problem.m, k), (k, n)))
        out = torch.empty(problem.m, n, device=self.device)
        lasts = PIPELINED * link.queued.seconds(problem.output_bytes(rows))
        rounds = max(1, min(MOST_ROUNDS, int(seconds / lasts)))
        groups = list(zip(left.split(rows), out.split(rows), strict=True))
        times = [self._pipelined(groups, right) for _ in range(rounds)]
        return Pipeline(problem, rows, self.slowest(statistics.median(times)))

    def _pipelined(
        self, groups: Sequence[tuple[torch.Tensor, torch.Tensor]], right: torch.Tensor
    ) -> float:
        """Seconds until the last group is computed; returns when all are sent."""
        self._rest()
        start = self.now()
        works: list[dist.Work] = []
        for rows, out in groups:
            torch.mm(rows, right, out=out)
            works += self._start([out])
        self._computed()
        computed = time.perf_counter() - start
        for work in works:
            work.wait()
        self.now()
        return computed

    def _computed(self) -> None:
        """Wait for this rank's GEMMs, and not for its collectives."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _side_by_side(
        self, buffers: Sequence[torch.Tensor], compute: Callable[[], Any]
    ) -> SideBySide:
        self.together()
        compute_alone = self.seconds(compute)
        link_alone = self._train(buffers).seconds
        self._rest()
        start = self.now()
        works = self._start(buffers)
        compute()
        self._computed()
        computed = time.perf_counter() - start
        for work in works:
            work.wait()
        return SideBySide(compute_alone, link_alone, computed, self.now() - start)


@dataclass(frozen=True)
class _Train:
    seconds: float
    """From the first start to the last end."""
    issued: float
    """To start one call."""


@dataclass(frozen=True)
class _Point:
    size: int
    alone: float
    queued: float
    issued: float
    spent: float
    """Seconds that measuring it took."""


def _undisturbed(times: Sequence[float]) -> float:
    """The lower quartile: the latency of one call is mostly what else the machine does."""
    return sorted(times)[len(times) // 4]
