"""Sequence-first activations and experts of varying capacity through Inductor, on gloo ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import overlapc
from tests.passes.layouts import few_experts
from tests.passes.spelling import all_gather, reduce_scatter
from tests.targets import SLOW_LINK

OPTIONS = {"target": SLOW_LINK, "overlap": "chunked"}
RANKS, EXPERTS, SEQUENCE, BATCH, INNER, HIDDEN = 2, 4, 24, 3, 64, 96
CAPACITIES = (24, 6, 40)


def layers(x, tokens, first, second, up, down):
    """A feed-forward layer as Megatron lays it out, and its experts."""
    full = all_gather(x, 0).transpose(0, 1)
    y = F.linear(F.linear(full, first).relu(), second)
    return reduce_scatter(y.transpose(0, 1).contiguous(), 0), few_experts(tokens, up, down)


def train(rank):
    """The worst error of results and gradients, how often it was compiled, and calls by site."""
    compilations = []

    def counting(graph_module, example_inputs):
        from overlapc.backend import backend

        compilations.append(graph_module)
        return backend(graph_module, example_inputs, options=OPTIONS)

    torch._dynamo.reset()  # what it saw of other sizes would make these vary
    compiled = torch.compile(layers, backend=counting)
    torch.manual_seed(rank)
    shapes = [(HIDDEN, INNER), (INNER, HIDDEN), (EXPERTS, INNER, HIDDEN), (EXPERTS, HIDDEN, INNER)]
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    worst = 0.0
    for capacity in CAPACITIES:
        x = torch.randn(SEQUENCE, BATCH, INNER, requires_grad=True)
        tokens = torch.randn(RANKS, EXPERTS, capacity, INNER, requires_grad=True)
        torch._dynamo.mark_dynamic(tokens, 2)
        found = results(compiled, (x, tokens, *weights))
        wide = [value.detach().double().requires_grad_() for value in (x, tokens, *weights)]
        for one, other in zip(found, results(layers, wide), strict=True):
            worst = max(worst, ((one.double() - other).norm() / other.norm()).item())
    sites = [site for site in overlapc.report().sites if "layouts.py" in site.where]
    return worst, len(compilations), [(site.graph, site.kind, dict(site.calls)) for site in sites]


def results(function, inputs):
    """What a function gives, and the gradients of a weighted sum of it."""
    outputs = function(*inputs)
    torch.manual_seed(7)
    total = sum((out * torch.randn(out.shape)).sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(total, inputs)]


def test_layers_of_other_layouts_train_right_at_every_capacity(two_ranks):
    for worst, compilations, sites in two_ranks.run(train, timeout=160):
        assert worst < 1e-5
        assert compilations == 1
        kinds = {(graph, kind) for graph, kind, _ in sites}
        assert len(sites) == 8
        assert kinds == {
            (graph, kind)
            for graph in ("forward", "backward")
            for kind in (
                *("all_gather_gemm", "gemm_reduce_scatter"),
                *("all_to_all_gemm", "gemm_all_to_all"),
            )
        }
        assert all(calls == {"chunked": len(CAPACITIES)} for *_, calls in sites)
