"""What it takes to look for attention in a graph grows with its size, and no faster."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx, nn

from overlapc.graphs.attention.finding import find_sites
from tests.attention.small_models import WIDTH, Attention

FEW, MANY = 4, 16


class Layers(nn.Module):
    """Attentions with weights of their own: a graph of more layers has more inputs."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(4, 2, 1.0) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(x.shape[1])
        mask = torch.where(rows[:, None] >= rows, 0.0, torch.finfo(x.dtype).min)
        for layer in self.layers:
            x = x + layer(x, mask[None, None])
        return x


def calls_of_reading(layers: int) -> int:
    """How many calls of Python reading one graph takes: unlike its seconds, always the same."""
    counted: list[int] = []

    def backend(module: fx.GraphModule, _: Any) -> Any:
        events: list[str] = []
        sys.setprofile(lambda frame, event, argument: events.append(event))
        try:
            sites = list(find_sites(module.graph))
        finally:
            sys.setprofile(None)
        assert len(sites) == layers
        counted.append(sum(event == "call" for event in events))
        return module

    torch._dynamo.reset()
    torch.compile(Layers(layers), backend=backend, dynamic=False)(torch.randn(2, 24, WIDTH))
    return counted[0]


def test_it_grows_with_the_layers():
    """Mutant: every read of a tensor looks through all inputs of the graph for sizes that vary."""
    calls_of_reading(1)  # what is remembered of the mask is found
    few, many = map(calls_of_reading, (FEW, MANY))
    assert many / few <= 1.1 * MANY / FEW
