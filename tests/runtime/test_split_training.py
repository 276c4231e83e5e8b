"""Halves of all-reduces in a tensor-parallel model that trains through Inductor on real ranks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import overlapc
from tests.targets import SLOWER_LINK

WIDTH, INNER = 64, 128


class Block(torch.nn.Module):
    """What of a Llama layer is not attention: norm, up, down, residual."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.RMSNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, INNER, bias=False)
        self.down = torch.nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


def train(rank, disable, blocks):
    """Errors against the whole model in float64, and the sites that ran."""
    torch.manual_seed(0)
    whole = torch.nn.Sequential(*(Block() for _ in range(blocks))).double()
    for parameter in whole.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # norms of ones would hide a mistake
    split = copy.deepcopy(whole).float()
    plan = {"*.up": ColwiseParallel(), "*.down": RowwiseParallel()}
    parallelize_module(split, init_device_mesh("cpu", (2,)), plan)
    torch._dynamo.reset()
    before = len(overlapc.report().sites)
    options = {"target": SLOWER_LINK, "disable": disable}
    compiled = torch.compile(split, backend="overlapc", options=options)
    x = torch.randn(4, 96, WIDTH, dtype=torch.float64)
    x32 = x.float().requires_grad_()
    x.requires_grad_()
    found, wanted = compiled(x32), whole(x)
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    (found * weights.float()).sum().backward()
    (wanted * weights).sum().backward()
    errors = {"output": error(found.detach(), wanted.detach()), "input": error(x32.grad, x.grad)}
    for name, parameter in split.named_parameters():
        grad = parameter.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        errors[name] = error(grad, whole.get_parameter(name).grad)
    sites = overlapc.report().sites[before:]
    return errors, [(s.graph, s.kind, s.decision, sum(s.calls.values())) for s in sites]


def error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(
    ("disable", "graphs"),
    # Gradients of weights hide the all-reduces of the backward, unless they may not.
    [
        pytest.param((), ("forward",), marks=pytest.mark.long),
        (("hide_collectives",), ("forward", "backward")),
    ],
)
@pytest.mark.parametrize("blocks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_plan_whose_all_reduces_are_split_trains_right(disable, graphs, blocks, two_ranks):
    """All but the last of each graph, which no product follows."""
    for errors, sites in two_ranks.run(train, disable, blocks, timeout=160):
        assert {name: value for name, value in errors.items() if not value < 1e-5} == {}
        for graph in graphs:
            for kind in ("gemm_reduce_scatter", "all_gather_gemm"):
                ran = [calls for g, k, _, calls in sites if (g, k) == (graph, kind)]
                assert sum(ran) >= blocks - 1, f"no {kind} in the {graph}: {sites}"
