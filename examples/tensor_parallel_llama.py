"""A tensor-parallel Llama over two processes: eager, Inductor and overlapc in one run.

    python -m examples.tensor_parallel_llama [--link 1gbit | loopback]

Where network namespaces can be made (as root, also of a user namespace), the processes talk over an
emulated link of the given rate; elsewhere over loopback. The part to copy is ``rank``: shard the
model, calibrate once, compile with ``backend="overlapc"``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import overlapc
from benchmarks.measuring.paired import Samples, measure
from benchmarks.processes.link import available, rate_limited_link
from benchmarks.processes.ranks import GroupRanks, run_rank, run_ranks
from benchmarks.processes.user_namespace import rerun_if_it_helps
from examples.llama_bound import bound_of_model
from examples.llama_model import batch, model, sites, tensor_parallel
from examples.llama_output import comparison, timelines

RANKS = 2
RATE = "1gbit"
"""At this rate an all-reduce of the demo takes about as long as the GEMM before it."""
LOOPBACK = "loopback"
LINK = "DEMO_LINK"
"""Environment variable that tells the processes what they talk over, for the output."""
TIMED_SECONDS = 60.0
MIN_ROUNDS, MAX_ROUNDS = 6, 25
CALIBRATION_SECONDS = 15.0
TIMEOUT_SECONDS = 900.0

Forward = Callable[[], torch.Tensor]
Say = Callable[[str], None]


def rank(group: dist.ProcessGroup) -> None:
    """Run one of the two processes."""
    say = _speaker(group.rank())
    mesh = init_device_mesh("cpu", (group.size(),))
    llama = tensor_parallel(model(), mesh)
    tokens = batch()
    millions = llama.num_parameters() / 1e6
    say(f"LlamaForCausalLM, {millions:.0f} million parameters over {group.size()} processes")

    say("calibrating this machine and the link ...")
    target = overlapc.calibrate(mesh.get_group(), seconds=CALIBRATION_SECONDS, save=False)
    inductor = torch.compile(llama, backend="inductor")
    options: dict[str, Any] = {"target": target}
    ours = torch.compile(llama, backend="overlapc", options=options)

    def prefill(of: Callable[..., Any]) -> Forward:
        return lambda: of(tokens, logits_to_keep=1).logits

    forwards = {
        "eager": prefill(llama),
        "inductor": prefill(inductor),
        "inductor again": prefill(inductor),
        "overlapc": prefill(ours),
    }
    with torch.no_grad():
        say("eager in float64, to measure errors against ...")
        exact = prefill(tensor_parallel(model().double(), mesh))()
        errors = {name: warm_up(name, run, exact, say) for name, run in forwards.items()}
        samples = timed(forwards, group, say)
        say("timing each site's GEMM and all-reduce, apart and together ...")
        bound = bound_of_model(sites(llama, group.size()), samples.median("inductor"), group)

    report = overlapc.report()
    if group.rank() == 0:
        print(f"\nPrefill of {tokens.numel()} tokens over {os.environ[LINK]}", end="\n\n")
        print(comparison(samples, errors, bound), report, timelines(report), sep="\n")


def warm_up(name: str, run: Forward, exact: torch.Tensor, say: Say) -> float:
    """Compile and run once; the largest error of the logits against float64."""
    start = time.perf_counter()
    error = (run().double() - exact).abs().max().item()
    say(f"{name}: first call in {time.perf_counter() - start:.1f} s")
    return error


def timed(forwards: dict[str, Forward], group: dist.ProcessGroup, say: Say) -> Samples:
    """Time all of them in turns; how many rounds follows from how long one takes."""
    ranks = GroupRanks(group)
    trial = measure(forwards, ranks, rounds=1, seed=0)
    fitting = round(TIMED_SECONDS / sum(trial.median(name) for name in forwards))
    rounds = min(max(fitting, MIN_ROUNDS), MAX_ROUNDS)
    say(f"timing {rounds} rounds, in random order within each ...")
    return measure(forwards, ranks, rounds=rounds, seed=1)


def main() -> None:
    """Make the link, start the processes on it, and wait for them."""
    parser = argparse.ArgumentParser("python -m examples.tensor_parallel_llama")
    parser.add_argument("--link", default=RATE, help=f"rate of the emulated link, or {LOOPBACK}")
    rate = parser.parse_args().link
    rerun_if_it_helps("examples.tensor_parallel_llama")
    reason = None if rate == LOOPBACK else available()
    if reason:
        print(f"no emulated link here, so this runs over loopback: {reason}")
        rate = LOOPBACK
    with nullcontext() if rate == LOOPBACK else rate_limited_link(RANKS, rate) as link:
        command = [sys.executable, "-m", "examples.tensor_parallel_llama"]
        over = str(link or LOOPBACK)
        print(f"{RANKS} gloo processes over {over}", flush=True)
        run_ranks([command] * RANKS, link, timeout=TIMEOUT_SECONDS, env={LINK: over}).check()


def _speaker(of: int) -> Say:
    """The first process talks, with the seconds since it started."""
    start = time.perf_counter()

    def say(text: str) -> None:
        if of == 0:
            print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    return say


if __name__ == "__main__":
    if LINK in os.environ:
        run_rank(rank)
    else:
        main()
