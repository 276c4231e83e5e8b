"""Ranks that compute unlike sizes around one collective, and whose graphs are compiled at unlike
calls or found in unlike caches: the collective is cut alike, and results are right.

What a rank of these would choose by itself differs: on this link a layer that contracts 300, or
gives as many columns, is cut, and one of 1 or 2000 is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._dynamo.utils import counters

import overlapc
from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.runtime.ranks import groups
from tests.runtime.matrix import forget
from tests.targets import SLOW_LINK

SECONDS = 15.0
"""How long a rank waits for what never comes: it fails the test."""

CALLS = {
    "unlike at first": ((300,), (1,)),
    "new on rank 1": ((300, 300), (300, 1)),
    "new on rank 0": ((1, 300), (1, 1)),
    "both ways": ((300, 1, 2000), (1, 300, 300)),
}
"""The local size of each rank at each call: a graph each. What computes most at the first is what
all ranks plan for."""

Layer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]


def layers(rank: int, group: dist.ProcessGroup) -> dict[str, Layer]:
    """Of operands [512, size] and [size, 128], or where the collective comes first [256, 64] and
    [64, size]."""

    def reduced(x, w):
        return functional.all_reduce(x @ w, "sum", group)

    def beside(x, w):
        """Rank 0 adds more, as a bias that only one may add."""
        y = x @ w
        return functional.all_reduce(torch.tanh(y * 2) + y.sin() if rank == 0 else y, "sum", group)

    def scattered(x, w):
        return functional.reduce_scatter_tensor(x @ w, "sum", 0, group)

    def gathered(x, w):
        return functional.all_gather_tensor(x, 0, group) @ w

    def gradients(x, w):
        """Of rows and of a weight: the second GEMM hides what is sent, on both ranks."""
        g = x @ torch.ones(len(w), 128).to(x)
        return functional.all_reduce(x @ w, "sum", group), x.t() @ g

    def another(x, w):
        """A GEMM that would hide some of it, more on one rank than on the other."""
        return functional.all_reduce(x @ w, "sum", group), x.sin() @ w.cos()

    return {f.__name__: f for f in (reduced, beside, scattered, gathered, gradients, another)}


def called(rank: int, steps: list[tuple[str, str, str, int]], folder: str) -> list[tuple]:
    """Of each step the worst error, how often something was cut, and hits of the cache.

    A step names a layer, its calls, and which of the caches in a folder each rank has. It begins as
    a process does, which knows nothing of what ranks said before.
    """
    found = []
    for name, calls, caches, _ in steps:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/{caches[rank]}"
        forget()
        groups._agreed.clear()
        torch._dynamo.reset()
        counters.clear()
        layer = layers(rank, dist.group.WORLD)[name]
        options = {"target": SLOW_LINK, "agreement_seconds": SECONDS}
        compiled = torch.compile(layer, backend="overlapc", dynamic=False, options=options)
        before, errors = cut(), []
        for size in CALLS[calls][rank]:
            first = name == "gathered"
            x = torch.randn(256, 64) if first else torch.randn(512, size)
            w = torch.randn(64, size) if first else torch.randn(size, 128)
            with torch.no_grad():
                results, wanted = compiled(x, w), layer(x.double(), w.double())
            pairs = zip(all_of(results), all_of(wanted), strict=True)
            errors += [((one - other).norm() / other.norm()).item() for one, other in pairs]
        found.append((max(errors), cut() - before, counters["inductor"]["fxgraph_cache_hit"]))
    return found


def all_of(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def cut() -> int:
    return sum(site.calls.get("chunked", 0) for site in overlapc.report().sites)


STEPS = [
    ("reduced", "new on rank 1", "ab", 2),
    ("reduced", "unlike at first", "ac", 1),  # rank 1 alone compiles
    ("gathered", "unlike at first", "ab", 1),
    ("gradients", "unlike at first", "ab", 0),
    ("another", "unlike at first", "ab", 1),
]
"""And how many calls are cut."""
MORE = [
    (name, calls, caches, 0 if name == "gradients" else times)
    for name in ("reduced", "beside", "scattered", "gathered", "gradients", "another")
    for calls, times in zip(CALLS, (1, 2, 0, 3), strict=True)
    for caches in ("ab", "ab", f"a{name}", f"{name}b")
]


def test_alone_they_would_choose_otherwise() -> None:
    alone = [
        plan(Problem(512, 128, k, "float32", "all_reduce", 2), SLOW_LINK) for k in (300, 1, 2000)
    ]
    assert [one.schedule for one in alone] == ["chunked", "serial", "serial"]


@pytest.mark.parametrize("steps", [STEPS, pytest.param(MORE, marks=pytest.mark.long)])
def test_shards_that_differ(two_ranks, tmp_path, steps):
    found = two_ranks.run(called, steps, str(tmp_path), timeout=60 + 3 * len(steps))
    for step, (error, times, _), (other, times_there, _) in zip(steps, *found, strict=True):
        assert max(error, other) < 1e-5, step
        assert times == times_there == step[-1], step
    if steps is STEPS:
        assert [there[1][-1] for there in found] == [1, 0], "one rank's cache was warm"
