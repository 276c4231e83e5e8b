"""One rank of the overlap benchmark: makes the candidates of each pair and times them.

``benchmarks.overlap_link`` starts it, once per rate, on every rank.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed._functional_collectives import all_reduce

from benchmarks.overlap_rows import (
    BOUND,
    INDUCTOR,
    OVERLAPC,
    SERIAL,
    SERIAL_AGAIN,
    Prediction,
    Row,
    to_json,
)
from benchmarks.overlap_shapes import Pair, Shape
from benchmarks.paired import measure
from benchmarks.ranks import GroupRanks, run_rank

EQUAL_PARTS = (4, 12)
"""Splits made by hand, as a reference that needs no planner."""

MIN_ROUNDS, MAX_ROUNDS = 9, 41
"""Nine rounds are the fewest whose 95 % interval leaves an outlier out on each side."""


@dataclass(frozen=True)
class Job:
    """What the launcher asks of the ranks of one rate."""

    pairs: list[Pair]
    seconds: float
    """To be spent on the timed rounds of one pair."""
    rest_seconds: float
    """Silence before each run, after which the link's token bucket is full."""
    calibration_seconds: float
    """For measuring machine and link, for overlapc; 0 leaves overlapc out."""
    results: str
    """File that rank 0 adds a line to for each pair."""
    targets: str
    """Folder that rank 0 saves the calibrated target in."""

    def save(self, path: Path) -> None:
        """Write what ``load`` reads."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Job:
        """Read what ``save`` wrote."""
        value = json.loads(path.read_text())
        pairs = [Pair(**{**pair, "shape": Shape(**pair["shape"])}) for pair in value.pop("pairs")]
        return Job(pairs=pairs, **value)


@dataclass(frozen=True)
class Operands:
    """Of one pair on one rank, and the buffer of a collective that depends on no GEMM."""

    x: torch.Tensor
    weight: torch.Tensor
    unrelated: torch.Tensor
    fresh: torch.Tensor
    """What ``unrelated`` is filled with before each run: sums of sums would overflow."""

    @staticmethod
    def make(shape: Shape, rank: int) -> Operands:
        generator = torch.Generator().manual_seed(rank)
        x = torch.randn(shape.m, shape.k, generator=generator)
        weight = torch.randn(shape.n, shape.k, generator=generator)
        fresh = torch.randn(shape.m, shape.n, generator=generator)
        return Operands(x, weight, fresh.clone(), fresh)


def linear_all_reduce(
    x: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup
) -> torch.Tensor:
    """What the compilers are given."""
    return all_reduce(F.linear(x, weight), "sum", group)


def serial(x: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The GEMM, then the collective, in eager mode."""
    out = F.linear(x, weight)
    dist.all_reduce(out, group=group)
    return out


def together(operands: Operands, group: dist.ProcessGroup) -> torch.Tensor:
    """The same GEMM and collective without a dependency: what no schedule can beat."""
    work = dist.all_reduce(operands.unrelated, group=group, async_op=True)
    out = F.linear(operands.x, operands.weight)
    _wait(work)
    return out


def in_equal_parts(
    x: torch.Tensor, weight: torch.Tensor, parts: int, group: dist.ProcessGroup
) -> torch.Tensor:
    """Bands of rows, each band's collective on its way while the next is computed."""
    out = torch.empty(x.size(0), weight.size(0))
    works = []
    for rows, band in zip(x.tensor_split(parts), out.tensor_split(parts), strict=True):
        torch.mm(rows, weight.t(), out=band)
        works.append(dist.all_reduce(band, group=group, async_op=True))
    for work in works:
        _wait(work)
    return out


def _wait(work: dist.Work | None) -> None:
    assert work is not None, "an asynchronous collective gives its work"
    work.wait()


def candidates(
    operands: Operands, group: dist.ProcessGroup, target: Any | None
) -> dict[str, Callable[[], torch.Tensor]]:
    """Everything that is compared, by name; overlapc where there is a ``target``."""
    x, weight = operands.x, operands.weight
    found: dict[str, Callable[[], torch.Tensor]] = {
        SERIAL: lambda: serial(x, weight, group),
        SERIAL_AGAIN: lambda: serial(x, weight, group),
        BOUND: lambda: together(operands, group),
    }
    for parts in EQUAL_PARTS:
        found[f"{parts} parts"] = lambda parts=parts: in_equal_parts(x, weight, parts, group)
    inductor = torch.compile(linear_all_reduce, backend="inductor", dynamic=False)
    found[INDUCTOR] = lambda: inductor(x, weight, group)
    if target is not None:
        ours = torch.compile(
            linear_all_reduce, backend="overlapc", dynamic=False, options={"target": target}
        )
        found[OVERLAPC] = lambda: ours(x, weight, group)
    return found


def measure_pair(pair: Pair, job: Job, group: dist.ProcessGroup, target: Any | None) -> Row:
    """Warm every candidate up, compare their results, and time them in one interleaved loop."""
    torch.compiler.reset()
    operands = Operands.make(pair.shape, group.rank())
    found = candidates(operands, group, target)
    expected = found[SERIAL]()
    # The bound computes no sum of the ranks' products: there is nothing to compare.
    errors = {name: _error(run(), expected) for name, run in found.items() if name != BOUND}

    def before() -> None:
        operands.unrelated.copy_(operands.fresh)
        time.sleep(job.rest_seconds)

    ranks = GroupRanks(group)
    trial = measure(found, ranks, rounds=1, seed=0, before=before)
    one_round = sum(trial.median(name) + job.rest_seconds for name in found)
    rounds = min(max(round(job.seconds / one_round), MIN_ROUNDS), MAX_ROUNDS)
    samples = measure(found, ranks, rounds=rounds, seed=1, before=before)
    return Row(pair, samples, errors, predicted(pair.shape, group, target) if target else None)


def predicted(shape: Shape, group: dist.ProcessGroup, target: Any) -> Prediction:
    """The plan of this shape, and the schedules that its site really ran."""
    import overlapc

    plan = overlapc.plan(
        m=shape.m,
        n=shape.n,
        k=shape.k,
        collective="all_reduce",
        world_size=group.size(),
        dtype="float32",
        target=target,
    )
    sites = [site for site in overlapc.report().sites if site.plan and site.plan == plan]
    calls = {name: count for site in sites for name, count in site.calls.items()}
    return Prediction(
        plan.schedule,
        plan.rows,
        plan.predicted_seconds,
        plan.serial_seconds,
        f"{plan.reason} [{plan.code}]",
        calls,
    )


def _error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


def calibrated(job: Job, group: dist.ProcessGroup) -> Any | None:
    """This machine and link, measured; None where overlapc is left out."""
    if not job.calibration_seconds:
        return None
    import overlapc

    start = time.perf_counter()
    # Not saved where compilations look: the emulated link is not the machine's usual one.
    target = overlapc.calibrate(group, seconds=job.calibration_seconds, save=False)
    if group.rank() == 0:
        target.save(Path(job.targets) / f"{job.pairs[0].rate}.json")
        print(f"  calibrated in {time.perf_counter() - start:.1f} s: {target.name}")
    return target


def told(row: Row) -> str:
    """One line of progress."""
    times = ", ".join(
        f"{name} {statistics.median(values) * 1e3:.1f}"
        for name, values in row.samples.seconds.items()
    )
    return f"  {row.pair.shape} ({row.samples.rounds} rounds), ms: {times}"


def main(group: dist.ProcessGroup) -> None:
    """Measure every pair of the job named on the command line."""
    # The table says of each pair what was done; the warning is for those who do not look.
    warnings.filterwarnings("ignore", "overlapc rewrote none")
    job = Job.load(Path(sys.argv[1]))
    target = calibrated(job, group)
    with torch.no_grad():
        for pair in job.pairs:
            row = measure_pair(pair, job, group, target)
            if group.rank() == 0:
                print(told(row))
                with Path(job.results).open("a") as results:
                    results.write(to_json(row) + "\n")


if __name__ == "__main__":
    run_rank(main)
