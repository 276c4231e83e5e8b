"""A kernel between GEMMs is first called in a backward of another thread, on all ranks at once."""

from __future__ import annotations

import threading
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F

import overlapc
from overlapc.runtime.ops import why_in_steps_of
from overlapc.runtime.programs import compiling, fusing
from tests.sparing import as_it_is
from tests.targets import SLOW_LINK

OPTIONS = {"target": SLOW_LINK, "overlap": "chunked"}


def gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    y = F.silu(x @ gate) * (x @ up)
    return functional.reduce_scatter_tensor_autograd(y, "sum", 0, dist.group.WORLD)


def trained_in_a_thread(rank: int, by: str) -> tuple[list[float], list[bool], list[str]]:
    """Errors of the result and gradients; of each kernel, whether the main thread made it; and why
    steps ran one by one."""
    from tests.preloaded import BY_INDUCTOR

    torch.manual_seed(rank)
    makers: list[int] = []

    def counted(graph: Any, inputs: Any) -> Any:
        makers.append(threading.get_ident())
        return (BY_INDUCTOR if by == "inductor" else as_it_is)(graph, inputs)

    fusing._function.cache_clear()
    compiled = torch.compile(gated, backend="overlapc", options=OPTIONS)
    reference = torch.compile(gated, backend="aot_eager")
    leaves = [torch.randn(s, dtype=torch.float64) for s in ((64, 32), (32, 64), (32, 64))]
    seen = [leaf.float().requires_grad_() for leaf in leaves]
    true = [leaf.requires_grad_() for leaf in leaves]
    found = wanted = torch.empty(0)
    with patch.object(compiling, "by_inductor", counted):
        for _ in range(2):
            found, wanted = compiled(*seen), reference(*true)
            weights = torch.randn(wanted.shape, dtype=torch.float64)
            backward = threading.Thread(target=(found * weights.float()).sum().backward)
            backward.start()
            backward.join(60)
            (wanted * weights).sum().backward()
    pairs = [(found, wanted), *((s.grad, t.grad) for s, t in zip(seen, true, strict=True))]
    errors = [((f.double() - w).norm() / w.norm()).item() for f, w in pairs]
    whys = [why for s in overlapc.report().sites if (why := why_in_steps_of(s.id))]
    return errors, [maker == threading.get_ident() for maker in makers], whys


@pytest.mark.parametrize("by", ["call by call", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_backward_compiles_in_its_own_thread(by, two_ranks):
    """Autograd has a thread of its own for each GPU. Both ranks compile at once, each kernel once.
    Mutant: a kernel that is made anew at each call."""
    for errors, in_main, whys in two_ranks.run(trained_in_a_thread, by, timeout=300):
        assert max(errors) < 1e-5
        assert in_main == [True, False]
        assert whys == []
