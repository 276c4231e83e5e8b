"""Does it save time to run a GEMM between the start and the wait of a collective it does not need?

``python -m benchmarks.hidden_order`` measures the backward of a column-wise linear layer on two
ranks over an emulated link: the gradient of the input is reduced over the ranks while that of the
weight is computed, or before. Every time is the slowest rank's, paired within a round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from benchmarks.measuring.paired import measure
from benchmarks.processes.link import rate_limited_link
from benchmarks.processes.ranks import GroupRanks, run_rank, run_ranks
from overlapc.planning.ratios import median_ratio, paired_ratios

SHAPES = ((512, 1024, 1024), (1024, 1024, 512), (256, 2048, 2048), (512, 512, 2048))
"""Rows, columns of the input and of the output: chosen, so that compute and link are comparable."""

CALIBRATION_SECONDS = 20.0
INDUCTOR, AGAIN, HIDDEN, CUT = "inductor", "inductor again", "hidden by order", "cut"


def backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the input, summed over the ranks, and of the weight."""
    assert dist.group.WORLD is not None
    return functional.all_reduce(gradient @ weight, "sum", dist.group.WORLD), x.t() @ gradient


def candidates(inputs: Sequence[torch.Tensor], target: object) -> dict[str, Callable[[], object]]:
    """Compiled functions by name, warm."""
    options = {HIDDEN: {}, CUT: {"disable": ("hide_collectives",)}}
    compiled = {INDUCTOR: torch.compile(backward, backend="inductor", dynamic=False)}
    compiled[AGAIN] = compiled[INDUCTOR]
    for name, more in options.items():
        torch_options = {"target": target, **more}
        compiled[name] = torch.compile(
            backward, backend="overlapc", dynamic=False, options=torch_options
        )
    found = {name: lambda run=run: run(*inputs) for name, run in compiled.items()}
    expected = found[INDUCTOR]()
    for run in found.values():
        for one, other in zip(run(), expected, strict=True):
            torch.testing.assert_close(one, other)
    return found


def measured(
    shape: tuple[int, int, int], group: dist.ProcessGroup, target: object, rounds: int
) -> str:
    """One line: what each candidate took, and the ratios to Inductor with their intervals."""
    torch.compiler.reset()
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(group.rank())
    sizes = (rows, columns), (rows, inner), (columns, inner)
    inputs = [torch.randn(size, generator=generator) for size in sizes]
    found = candidates(inputs, target)
    rest = lambda: time.sleep(0.02)  # noqa: E731  the link's bucket fills up again
    samples = measure(found, GroupRanks(group), rounds=rounds, seed=1, before=rest)
    serial = samples.seconds[INDUCTOR]
    parts = []
    for name in found:
        ratio = median_ratio(paired_ratios(serial, samples.seconds[name]))
        parts.append(f"{name} {samples.median(name) * 1e3:.1f} ms ({ratio})")
    return f"{rows}x{inner}x{columns}: " + ", ".join(parts)


def measured_here(group: dist.ProcessGroup, rounds: int) -> None:
    """Measure every shape on this rank."""
    import overlapc

    target = overlapc.calibrate(group, seconds=CALIBRATION_SECONDS, save=False)
    with torch.no_grad():
        for shape in SHAPES:
            line = measured(shape, group, target, rounds)
            if group.rank() == 0:
                print(line)
    if group.rank() == 0:
        for site in overlapc.report().sites:
            print(f"{site.code}: {site.reason}")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each shape, and what was decided."""
    parser = argparse.ArgumentParser("python -m benchmarks.hidden_order", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--rate", default="1gbit", help="of the emulated link, as tc writes it")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)  # be one of both
    given = parser.parse_args(argv)
    if given.rank:
        run_rank(partial(measured_here, rounds=given.rounds))
    rank = ("-m", "benchmarks.hidden_order", "--rank", "--rounds", str(given.rounds))
    with rate_limited_link(2, given.rate) as link:
        print(f"two ranks, {link}")
        run_ranks([[sys.executable, *rank]] * 2, link, timeout=400).check()


if __name__ == "__main__":
    main()
