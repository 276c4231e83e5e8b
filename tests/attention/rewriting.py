"""Runs the passes that come before autograd on a function, and then the graph that they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from overlapc import options as user_options
from overlapc.dynamo import rewrite_before_autograd
from overlapc.graphs.bodies import subgraphs
from overlapc.graphs.canonical import text
from overlapc.reporting.records import Site


@dataclass(frozen=True)
class Rewritten:
    """What became of a function."""

    function: Callable[..., Any]
    """Runs what the passes left, by eager kernels."""
    sites: list[Site]
    before: list[str]
    """Text of each graph, bodies of higher-order ops first."""
    after: list[str]

    @property
    def codes(self) -> list[str]:
        """One a site; ``!code`` of a refused one, ``=code`` of one that is kept."""
        signs = {"rewritten": "", "kept": "=", "refused": "!"}
        return [signs[site.decision] + site.code for site in self.sites]

    def calls(self, name: str) -> int:
        """How often a function of that name is called now."""
        return sum(part.count(f" = {name}(") for part in self.after)


def rewrite(
    function: Callable[..., Any], *inputs: Any, dynamic: bool | None = False, **options: Any
) -> Rewritten:
    """Trace a function for its inputs and rewrite it, as the backend does."""
    sites: list[Site] = []
    before: list[str] = []
    after: list[str] = []
    chosen = user_options.from_user({"softmax": "sdpa", **options})

    def texts(module: fx.GraphModule) -> list[str]:
        return [text(graph) for graph in (*subgraphs(module.graph), module.graph)]

    def backend(module: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        before.extend(texts(module))
        for compilation in rewrite_before_autograd(module, chosen, examples):
            sites.extend(compilation.sites)
        after.extend(texts(module))
        return module

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, dynamic=dynamic)
    compiled(*inputs)
    return Rewritten(compiled, sites, before, after)
