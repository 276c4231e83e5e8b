"""Random machines and tables of seconds for the planner's tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from overlapc.planning.cost import Costs
from overlapc.planning.curve import Curve
from overlapc.planning.problem import Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target


def random_target(random: Random, *, device: str = "cpu", resident: int = 1) -> Target:
    """Rates of any magnitude relation; contention up to where overlap stops to pay."""
    c = random.choice([1.0, random.uniform(1.0, 1.9)])
    # 1/c + 1/d > 1
    d = random.choice([1.0, random.uniform(1.0, min(3.0, 0.99 / (1 - 1 / c)) if c > 1 else 3.0)])
    rates = GemmRates(
        "float32",
        flops_per_second=10 ** random.uniform(9, 12),
        launch_seconds=10 ** random.uniform(-6, -3),
        pack_bytes_per_second=random.choice([None, 10 ** random.uniform(8, 11)]),
        memory_bytes_per_second=random.choice([None, 10 ** random.uniform(9, 12)]),
        tile_rows=random.choice([1, 4, 16, 48]),
        tile_columns=random.choice([1, 16, 128]),
        resident=resident,
    )
    curves = [random_curve(random), random_curve(random)]
    link = Link("all_reduce", 2, *curves, issue_seconds=random.choice([0.0, 3e-5]))
    return Target(
        name="random",
        device=device,
        backend="gloo",
        is_measured=True,
        gemm=(rates,),
        links=(link,),
        compute_slowdown=c,
        link_slowdown=d,
        signal_seconds=random.choice([0.0, 10 ** random.uniform(-6, -3)]),
    )


def random_curve(random: Random) -> Curve:
    """Latency and bandwidth of any relation, with noise: neither convex nor concave."""
    latency, bandwidth = 10 ** random.uniform(-6, -2), 10 ** random.uniform(6, 11)
    sizes = sorted(random.sample(range(64, 1 << 22), random.randint(1, 8)))
    return Curve(
        tuple((size, (latency + size / bandwidth) * random.uniform(0.7, 1.4)) for size in sizes)
    )


def random_problem(random: Random, max_rows: int) -> Problem:
    """Up to ``max_rows`` rows, other sizes up to a few hundred."""
    m, n, k = random.randint(1, max_rows), random.randint(1, 512), random.randint(1, 512)
    return Problem(m, n, k, "float32", "all_reduce", 2)


def random_tables(random: Random, units: int) -> TableCosts:
    """One row a unit, with seconds that follow no law at all."""
    target = random_target(random)
    rows = range(1, units + 1)
    return TableCosts(
        Problem(units, 8, 8, "float32", "all_reduce", 2),
        target,
        {
            what: {count: random.uniform(0.1, 1 + count) for count in rows}
            for what in ("gemm", "alone", "queued")
        },
    )


@dataclass(frozen=True)
class TableCosts(Costs):
    """Costs that are looked up, not derived from rates."""

    table: dict[str, dict[int, float]] = field(default_factory=dict, hash=False)

    def gemm(self, rows: int) -> float:
        return self.table["gemm"][rows]

    def issue(self) -> float:
        return 0.0

    def queued(self, rows: int) -> float:
        return self.table["queued"][rows]

    def alone(self, rows: int) -> float:
        return self.table["alone"][rows]
