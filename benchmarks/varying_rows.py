"""What do sites whose rows vary cost beside Inductor where their plan says serial?

``python -m benchmarks.varying_rows`` (a minute or two) calls chains with pointwise work on two gloo
ranks, over loopback. They are compiled once for all rows, and planned for a machine that cuts only
many more rows than are called. Every time is the slowest rank's, paired within a round;
``inductor again`` is Inductor beside itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring.paired import measure
from benchmarks.processes.ranks import GroupRanks, run_rank, run_ranks
from overlapc.planning.curve import Curve
from overlapc.planning.problem import COLLECTIVES
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.target import Target

ROWS = (2, 64, 512)
INNER, COLUMNS = 64, 1024
INDUCTOR, AGAIN, OURS = "inductor", "inductor again", "overlapc"

CURVE = Curve(((1024, 1e-6), (2**24, 2**24 / 1e9)))
MACHINE = Target(
    name="cuts-many-rows",
    device="cpu",
    backend="gloo",
    is_measured=True,
    gemm=(GemmRates("float32", 1e12, 1e-2),),
    links=tuple(Link(collective, 2, CURVE, CURVE) for collective in COLLECTIVES),
    compute_slowdown=1.0,
    link_slowdown=1.0,
)
"""Every GEMM's launch takes so long that only thousands of rows are cut."""


def world() -> dist.ProcessGroup:
    """The group of all ranks."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def gated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """What a gathered pair of column-parallel layers computes."""
    full = functional.all_gather_tensor(x, 0, world())
    return F.silu(full @ gate) * (full @ up)


def activated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """A product with pointwise work before an all-reduce."""
    return functional.all_reduce(F.silu(x @ gate) * (x @ up), "sum", world())


def normed(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """A product, a residual and a norm before a reduce-scatter."""
    y = F.rms_norm(x @ gate + (x @ up).relu(), (COLUMNS,))
    return functional.reduce_scatter_tensor(y, "sum", 0, world())


CHAINS: dict[str, Callable[..., Tensor]] = {
    "all-gather, gate and up": gated,
    "gate and up, all-reduce": activated,
    "residual and norm, reduce-scatter": normed,
}


def candidates(chain: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """Compiled functions of the same graph."""
    options: dict[str, Any] = {"target": MACHINE}
    ours = torch.compile(chain, backend="overlapc", options=options)
    plain = torch.compile(chain, backend="inductor")
    return {INDUCTOR: plain, AGAIN: plain, OURS: ours}


def measured(name: str, rows: Sequence[int], group: dist.ProcessGroup, rounds: int) -> list[str]:
    """A line for each number of rows: Inductor's median, and ratios to it."""
    torch.compiler.reset()
    compiled, lines = candidates(CHAINS[name]), []
    weights = [torch.randn(COLUMNS, INNER).t() / INNER**0.5 for _ in range(2)]
    for count in rows:
        inputs = (torch.randn(count, INNER), *weights)
        torch._dynamo.mark_dynamic(inputs[0], 0)
        runs = {name: lambda run=run, inputs=inputs: run(*inputs) for name, run in compiled.items()}
        expected = runs[INDUCTOR]()
        for run in runs.values():
            torch.testing.assert_close(run(), expected, atol=1e-4, rtol=1e-4)
        samples = measure(runs, GroupRanks(group), rounds=rounds, seed=1)
        ratios = (f"{other} {samples.ratio(other, INDUCTOR)}" for other in (AGAIN, OURS))
        median = samples.median(INDUCTOR) * 1e6
        lines.append(f"{name}, {count} rows: inductor {median:.0f} us; {', '.join(ratios)}")
    return lines


def measured_here(group: dist.ProcessGroup, rounds: int) -> None:
    """Measure every chain on this rank."""
    import overlapc

    with torch.no_grad():
        for name in CHAINS:
            for line in measured(name, ROWS, group, rounds):
                if group.rank() == 0:
                    print(line, flush=True)
    sites = overlapc.report().sites
    unlike = [site.reason for site in sites if site.calls.keys() != {"serial"}]
    if unlike or len(sites) != len(CHAINS):
        raise SystemExit(f"not all sites were rewritten and ran serial: {unlike}")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each chain and number of rows."""
    parser = argparse.ArgumentParser("python -m benchmarks.varying_rows", description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)  # be one of both
    given = parser.parse_args(argv)
    if given.rank:
        run_rank(partial(measured_here, rounds=given.rounds))
    rank = ("-m", "benchmarks.varying_rows", "--rank", "--rounds", str(given.rounds))
    run_ranks([[sys.executable, *rank]] * 2, timeout=600).check()


if __name__ == "__main__":
    main()
