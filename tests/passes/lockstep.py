"""Runs one graph on several ranks that are not there: the oracle of what a pass must keep.

Every rank takes one step of the graph, then every rank the next; a collective is computed from what
all of them hold. Nothing of overlapc and no process group is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

c10d = torch.ops._c10d_functional


def traced(function: Callable[..., Any], *inputs: Any) -> fx.GraphModule:
    """The graph of a function as post-grad passes see it, functional collectives and all."""
    module = make_fx(function, tracing_mode="fake")(*inputs)
    module.graph.eliminate_dead_code()
    return module


def run(
    module: fx.GraphModule, inputs: Sequence[Sequence[Any]], alone: Sequence[str] = ()
) -> list[list[Any]]:
    """Return every rank's outputs for every rank's inputs; groups in ``alone`` have one rank."""
    ranks = range(len(inputs))
    values: list[dict[fx.Node, Any]] = [{} for _ in ranks]
    feeds = [iter(own) for own in inputs]
    for node in module.graph.nodes:
        args = [
            fx.map_arg((node.args, node.kwargs), lambda n, r=rank: values[r][n]) for rank in ranks
        ]
        if node.op == "placeholder":
            results = [next(feed) for feed in feeds]
        elif node.op == "output":
            return [list(torch.utils._pytree.tree_leaves(own[0])) for own in args]
        elif node.target in COLLECTIVES and args[0][0][-1] in alone:
            results = [COLLECTIVES[node.target]([own[0]])[0] for own in args]
        elif node.target in COLLECTIVES:
            results = COLLECTIVES[node.target]([own[0] for own in args])
        elif node.op == "get_attr":
            results = [getattr(module, node.target) for _ in ranks]
        else:
            results = [node.target(*own[0], **own[1]) for own in args]
        for rank in ranks:
            values[rank][node] = results[rank]
    raise AssertionError("a graph ends in its output")


def _reduced(args: list[Any]) -> torch.Tensor:
    stacked, how = torch.stack([own[0] for own in args]), args[0][1]
    return {"sum": stacked.sum, "avg": stacked.mean, "max": stacked.amax}[how](0)


def _all_reduce(args: list[Any]) -> list[torch.Tensor]:
    return [_reduced(args) for _ in args]


def _reduce_scatter(args: list[Any]) -> list[torch.Tensor]:
    return list(_reduced(args).chunk(len(args)))


def _all_gather(args: list[Any]) -> list[torch.Tensor]:
    return [torch.cat([own[0] for own in args]) for _ in args]


def _all_to_all(args: list[Any]) -> list[torch.Tensor]:
    parts = [own[0].split(own[2]) for own in args]
    return [torch.cat([part[rank] for part in parts]) for rank in range(len(args))]


COLLECTIVES = {
    c10d.all_reduce.default: _all_reduce,
    c10d.reduce_scatter_tensor.default: _reduce_scatter,
    c10d.all_gather_into_tensor.default: _all_gather,
    c10d.all_to_all_single.default: _all_to_all,
    c10d.wait_tensor.default: lambda args: [own[0] for own in args],
}
