"""Random machines and tables of seconds for the planner's tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from overlapc.planning.column_costs import ColumnCosts
from overlapc.planning.cost import Costs
from overlapc.planning.curve import Curve
from overlapc.planning.kernel_costs import KernelCosts, PackedCosts
from overlapc.planning.packed_order import packs
from overlapc.planning.problem import COLLECTIVES, Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, Tile

KINDS = {
    "all_reduce": ("all_reduce", ""),
    "reduce_scatter": ("reduce_scatter", ""),
    "gemm_all_to_all": ("all_to_all", "gemm_first"),
    "all_gather": ("all_gather", ""),
    "all_to_all_gemm": ("all_to_all", "collective_first"),
}
"""Collective and order of a problem, by name."""

CONSUMERS = ("all_gather", "all_to_all_gemm")

BY_COLUMNS = {f"{kind}_by_columns": KINDS[kind] for kind in KINDS if kind not in CONSUMERS}
"""Those of which columns are cut."""

CUTS = {**KINDS, **BY_COLUMNS}
"""What is cut: rows of every kind of problem, columns of some."""


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
    links = tuple(random_link(random, collective) for collective in COLLECTIVES)
    return Target(
        name="random",
        device=device,
        backend="gloo",
        is_measured=True,
        gemm=(rates,),
        links=links,
        compute_slowdown=c,
        link_slowdown=d,
        signal_seconds=random.choice([0.0, 10 ** random.uniform(-6, -3)]),
    )


def random_link(random: Random, collective: str) -> Link:
    """Measured among a few ranks; starting a call costs nothing, a little, or grows."""
    return Link(
        collective,
        random.choice([2, 4]),
        random_curve(random),
        random_curve(random),
        issue_seconds=random.choice([0.0, 3e-5]),
        consumer_issue_seconds=random.choice([0.0, 2e-5]),
        issue=random.choice([None, random_curve(random)]),
    )


def random_curve(random: Random) -> Curve:
    """Latency and bandwidth of any relation, with noise: neither convex nor concave."""
    latency, bandwidth = 10 ** random.uniform(-6, -2), 10 ** random.uniform(6, 11)
    sizes = sorted(random.sample(range(64, 1 << 22), random.randint(1, 8)))
    return Curve(
        tuple((size, (latency + size / bandwidth) * random.uniform(0.7, 1.4)) for size in sizes)
    )


def random_problem(random: Random, max_rows: int, kind: str = "all_reduce") -> Problem:
    """A problem of a kind, up to ``max_rows`` rows and other sizes up to a few hundred.

    All-reduces are among two ranks; others among any few, uneven numbers too, in whose multiples
    their rows come. Where columns are cut, it is those that are up to ``max_rows``.
    """
    collective, order = CUTS[kind]
    size = 2 if collective == "all_reduce" else random.choice([2, 3, 4, 5, 6])
    granule = 1 if collective == "all_reduce" else random.choice([1, size])
    by_columns = kind in BY_COLUMNS
    m = granule * random.randint(1, max(1, (200 if by_columns else max_rows) // granule))
    return Problem(
        m,
        random.randint(1, max_rows if by_columns else 512),
        random.randint(1, 512),
        "float32",
        collective,
        size,
        epilogue_bytes=random.choice([0, 4 * m * random.randint(1, 512)]),
        order=order,
        sent_dtype=random.choice(["", "bfloat16"]),
        row_multiple=granule,
        cuts_columns=by_columns,
    )


KERNELS = ("all_reduce", "reduce_scatter", "gemm_all_to_all", "in blocks", "packed")
"""What generated kernels are of: collectives, and what their groups are made of."""


def random_kernel(random: Random, kind: str, max_rows: int = 300) -> KernelCosts:
    """A kernel of any tile on a device of a few multiprocessors, some left to the collective."""
    target = random_target(random, device="cuda", resident=random.choice([3, 17, 60]))
    rates = replace(target.gemm[0], generated_share=random.choice([None, random.uniform(0.3, 1)]))
    target = replace(
        target,
        gemm=(rates,),
        communication_sms=random.choice([0, 1, 2]),
        l2_bytes=random.choice([0, 10 ** random.randint(3, 6)]),
        l2_bytes_per_second=random.choice([None, 10 ** random.uniform(9, 12)]),
        tile_seconds=random.choice([0.0, 10 ** random.uniform(-7, -5)]),
    )
    dealt = {"packed": "all_reduce", "in blocks": "reduce_scatter"}
    problem = replace(
        random_problem(random, max_rows, dealt.get(kind, kind)), kernel_sums=MOST_SUMS
    )
    tile = random_tile(random)
    if kind == "packed":
        whole = tile.sweep * tile.block_m
        m = problem.m if packs(tile, problem.m) else -(-problem.m // whole) * whole
        return PackedCosts(replace(problem, m=m, takes_map=True), target, tile, tile.sweep)
    if kind == "in blocks":
        run_rows, blocks = random.choice([16, 48, random.randint(1, 40)]), random.randint(1, 8)
        ranks = problem.world_size
        problem = replace(problem, m=ranks * run_rows * blocks, row_multiple=ranks, blocks=blocks)
    return KernelCosts(problem, target, tile, random.choice([1, tile.sweep]))


def random_tile(random: Random) -> Tile:
    """Of any size, such as no device has."""
    rows, columns, depth = (random.choice(sizes) for sizes in ((4, 16, 48), (16, 64, 256), (1, 32)))
    return Tile(rows, columns, depth, 4, 3, random.choice([1, 2, 4, 8]))


def costs_of(kind: str, problem: Problem, target: Target) -> Costs:
    """The costs of what is cut."""
    return (ColumnCosts if kind in BY_COLUMNS else Costs)(problem, target)


def random_tables(random: Random, units: int, kind: str = "all_reduce") -> TableCosts:
    """One row a unit, with seconds that follow no law at all."""
    collective, order = CUTS[kind]
    rows = range(1, units + 1)
    tables = {
        what: {count: random.uniform(0.1, 1 + count) for count in rows}
        for what in ("compute", "beside", "alone", "queued", "local")
    }
    problem = Problem(units, 8, 8, "float32", collective, 2, order=order, row_multiple=1)
    return TableCosts(problem, random_target(random), tables)


@dataclass(frozen=True)
class TableCosts(Costs):
    """Costs that are looked up, not derived from rates."""

    table: dict[str, dict[int, float]] = field(default_factory=dict, hash=False)

    def gemm(self, rows: int, /, *, beside: bool = False) -> float:
        return self.compute(rows, beside=beside)

    def compute(self, rows: int, /, *, beside: bool = False) -> float:
        return self.table["beside" if beside else "compute"][rows]

    @property
    def backlog(self) -> float:  # type: ignore[override]
        return self.table["local"][self.problem.m] if self.problem.is_consumer else 0.0

    def queued(self, rows: int) -> float:
        return self.table["queued"][rows]

    def alone(self, rows: int) -> float:
        return self.table["alone"][rows]
