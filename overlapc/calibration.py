"""Measure a process group's machines and links, and agree on the `Target` that describes them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

from overlapc.errors import GroupError, TargetError
from overlapc.planning.fitting import (
    GemmSample,
    SideBySide,
    fit_gemm,
    rising_curve,
    rounded,
    sustained_curve,
)
from overlapc.planning.problem import ITEM_BYTES
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Source, Target, stored_path

Progress = Callable[[str, float], None]
"""Called with what is measured next, and the share of all that is done before it."""

GEMM_ROWS = (16, 32, 64, 128, 256, 512)
GEMM_WIDTHS = ((1024, 1024), (2048, 2048), (1024, 4096), (4096, 1024), (4096, 4096))
"""Columns and contracted sizes: chosen to span what the shards of a small model have."""

SMALLEST_BYTES, LARGEST_BYTES = 1 << 12, 1 << 25
"""Collectives measured, by factors of two: from pure latency to pure bandwidth."""

TRAIN = 6
"""Calls in a train of asynchronous ones, where time allows: about as many as plans have groups."""

MOST_ROUNDS = 8
"""Of one size: their median is steady enough."""

REST_SECONDS = 0.02
"""Of compute before a timed collective, about what comes before one in a model: caches are warm
with other things, and a link that saves up credit while idle has saved it up."""

GEMM_SHARE, LINK_SHARE = 0.3, 0.5
"""Of the time allowed; the rest is for contention. Chosen: links vary more than cores."""

SIDE_BY_SIDE_BYTES = 1 << 20
"""Of each collective that GEMMs are run beside: as large as groups usually are."""

SHIPPED_FOR = {
    "H200": "h200-nvlink",
    "H100": "h100-nvlink",
    "A100": "a100-nvlink",
    "RTX 4090": "rtx4090-pcie",
    "MI300X": "mi300x",
}
"""Shipped targets by what the device's name contains."""


def calibrate(
    group: dist.ProcessGroup | None = None,
    *,
    seconds: float = 20.0,
    save: bool = True,
    progress: Progress | None = None,
) -> Target:
    """Measure the group's GEMMs, its all-reduce and what they do to each other.

    Every member calls it at the same time, with nothing else running, and gets the same target.
    Takes about ``seconds``. With ``save`` each member stores it where `find_target` looks; use
    ``save=False`` for a link that is not the machine's usual one. Raises GroupError where the group
    is gone or a member leaves; nothing outlasts the group's own timeout.
    """
    with _group_errors():
        bench = _Bench.of(group)
        tell = progress or (lambda stage, done: None)
        tell("GEMM", 0.0)
        gemm = tuple(bench.gemm(dtype, seconds * GEMM_SHARE) for dtype in bench.dtypes())
        links, slowdowns = (), (1.0, 1.0)
        if bench.world_size > 1:
            tell("all-reduce", GEMM_SHARE)
            links = (bench.all_reduce(seconds * LINK_SHARE),)
            tell("GEMM beside all-reduce", GEMM_SHARE + LINK_SHARE)
            slowdowns = bench.contention(links[0], seconds * (1 - GEMM_SHARE - LINK_SHARE))
        target = bench.agree(
            Target(
                name=target_name(bench.device.type, bench.backend, bench.world_size),
                device=bench.device.type,
                backend=bench.backend,
                is_measured=True,
                gemm=gemm,
                links=links,
                compute_slowdown=slowdowns[0],
                link_slowdown=slowdowns[1],
                source=(Source("all", bench.conditions()),),
            )
        )
    if save:
        target.save(stored_path(target.name))
    tell("done", 1.0)
    return target


def target_name(device_type: str, backend: str, world_size: int) -> str:
    """The name under which `calibrate` stores a group's target."""
    return f"{device_type}-{backend}-{world_size}"


def find_target(device_type: str, backend: str, world_size: int) -> Target:
    """The target that `calibrate` stored for such a group, else the shipped one for the device.

    Raises TargetError where neither is there, or the stored one cannot be read.
    """
    name = target_name(device_type, backend, world_size)
    if stored_path(name).exists():
        return Target.load(stored_path(name))
    if device_type == "cpu":
        return Target.load("cpu")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else device_type
    for part, shipped in SHIPPED_FOR.items():
        if part in device:
            return Target.load(shipped)
    raise TargetError(
        f"Nothing is known of the device {device!r}.",
        where=f"stored target {stored_path(name)} and the shipped targets",
        remedy="run overlapc calibrate on this group, or give a target by name or path",
    )


@contextmanager
def _group_errors() -> Iterator[None]:
    try:
        yield
    except GroupError:
        raise
    except (RuntimeError, ValueError) as error:
        # torch raises these two for a missing, destroyed or broken group, with no class of its own.
        raise GroupError(
            f"The group cannot be measured: {error}",
            where="calibrate",
            remedy="call it on every member of a live group, after init_process_group",
        ) from error


@dataclass(frozen=True)
class _Bench:
    """One rank's stopwatch for a group whose members all do the same at the same time."""

    group: dist.ProcessGroup
    device: torch.device
    backend: str
    world_size: int

    @staticmethod
    def of(group: dist.ProcessGroup | None) -> _Bench:
        group = group or dist.group.WORLD
        if group is None:
            raise ValueError("there is no default process group")
        backend = dist.get_backend(group)
        on_gpu = backend == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        return _Bench(group, device, backend, dist.get_world_size(group))

    def dtypes(self) -> tuple[str, ...]:
        return ("float32", "bfloat16") if self.device.type == "cuda" else ("float32",)

    def conditions(self) -> str:
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
        share = seconds / len(shapes) / len(self.dtypes())
        samples = []
        for rows, (n, k) in shapes:
            call = self._mm(rows, n, k, dtype)
            call()
            self.together()
            taken = self.slowest(statistics.median(self._repeat(call, share)))
            samples.append(GemmSample(rows, n, k, taken))
        return fit_gemm(self._gemm_shape(dtype), samples, ITEM_BYTES[dtype])

    def _gemm_shape(self, dtype: str) -> GemmRates:
        if self.device.type == "cpu":
            return GemmRates(dtype, 1.0, 0.0, pack_bytes_per_second=1.0)
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return GemmRates(dtype, 1.0, 0.0, tile_rows=128, tile_columns=256, resident=processors)

    def _mm(self, rows: int, n: int, k: int, dtype: str) -> Callable[[], Any]:
        kind = getattr(torch, dtype)
        left, right = (torch.randn(shape, device=self.device).to(kind) for shape in ((rows, k), (k, n)))
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
        while size <= LARGEST_BYTES and (not points or spent + 2 * points[-1].spent < seconds):
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
        alone = self.slowest(statistics.median(train.seconds for train in single))
        issued = self.slowest(statistics.median(train.issued for train in single))
        if trains:
            # The first call of a train finds the link idle, and the others queue behind it.
            lasted = self.slowest(statistics.median(train.seconds for train in trains))
            queued = (lasted - alone) / (TRAIN - 1)
        else:
            # What tells the two apart is latency, which does not grow with the size.
            queued = alone + (before.queued - before.alone if before else 0.0)
        # At least what no curve can be below, should noise have swapped two times.
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
        mm = self._mm(64, 1024, 1024, "float32")
        start = self.now()
        while self.now() - start < REST_SECONDS:
            mm()
        self.together()

    # Contention

    def contention(self, link: Link, seconds: float) -> tuple[float, float]:
        """How much slower compute and link run beside each other: (c, d), medians of rounds."""
        each = link.queued.seconds(SIDE_BY_SIDE_BYTES)
        rounds = 5
        # A round is a train alone, GEMMs alone and both together, about 2.5 trains long.
        count = max(4, min(64, int(seconds / rounds / 2.5 / each)))
        buffers = [self._buffer(SIDE_BY_SIDE_BYTES) for _ in range(count)]
        mm = self._mm(64, 1024, 1024, "float32")
        one = self.slowest(statistics.median(self._repeat(mm, 0.05)))
        # GEMMs end first even if the link does not slow them, so the link is busy throughout.
        gemms = max(1, int(0.5 * count * each / one))
        found = [self._side_by_side(buffers, lambda: [mm() for _ in range(gemms)]) for _ in range(rounds)]
        c = statistics.median(both.compute_slowdown for both in found)
        d = statistics.median(both.link_slowdown for both in found)
        return rounded(self.slowest(c)), rounded(self.slowest(d))

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
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
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
