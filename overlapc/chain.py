"""Typed records of a GEMM, a collective and the chain between them; refusals are values too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from overlapc.graph import tensor_facts

aten = torch.ops.aten
functional = torch.ops._c10d_functional


@dataclass(frozen=True)
class Gemm:
    """``a[m, k] @ b[k, n] (+ bias)`` as one node of a post-grad graph."""

    node: fx.Node
    a: fx.Node
    b: fx.Node
    bias: fx.Node | None
    m: int
    n: int
    k: int
    dtype: str
    device: str
    static: bool
    """The sizes are numbers, not hints of symbols."""


@dataclass(frozen=True)
class AllReduce:
    """A functional all-reduce and its one wait."""

    start: fx.Node
    wait: fx.Node
    source: fx.Node
    """The tensor that is reduced."""
    reduce: str
    group: str
    """Name of the process group."""


@dataclass(frozen=True)
class Refusal:
    """Why a collective may not be rewritten: the node, a stable code, and one sentence."""

    node: fx.Node
    code: str
    reason: str


@dataclass(frozen=True)
class Chain:
    """A GEMM, the views after it, and the all-reduce of its result."""

    gemm: Gemm
    views: tuple[fx.Node, ...]
    """From the GEMM down to the collective; each keeps the order of elements."""
    collective: AllReduce


def is_ours(node: fx.Node) -> bool:
    """Return whether the node is an op of overlapc, which all communicate."""
    return _namespace(node) == "overlapc"


def collective_starts(graph: fx.Graph) -> list[fx.Node]:
    """Return every node that starts a collective, ours included, in program order."""
    wait = functional.wait_tensor.default
    return [
        node
        for node in graph.nodes
        if _namespace(node) in ("overlapc", "_c10d_functional") and node.target is not wait
    ]


def _namespace(node: fx.Node) -> str:
    return node.target.namespace if isinstance(node.target, torch._ops.OpOverload) else ""


KINDS = {
    "all_reduce": "gemm_all_reduce",
    "reduce_scatter": "gemm_reduce_scatter",
    "all_gather": "all_gather_gemm",
    "all_to_all": "gemm_all_to_all",
}
"""What a site is called by the start of the collective's name."""


def kind_of(start: fx.Node) -> str:
    """Return the kind of site that a collective belongs to; the nearest for the rare ones."""
    name = str(start.target).partition(".")[2]
    return next((kind for part, kind in KINDS.items() if name.startswith(part)), "gemm_all_reduce")


def group_of(start: fx.Node) -> str:
    """Return the name of a collective's group; empty if the graph computes the group."""
    name = start.args[-1]
    return name if isinstance(name, str) else ""


def read_all_reduce(start: fx.Node) -> AllReduce | Refusal:
    """Read an all-reduce node: its operand, operation, group and wait."""
    if start.target is not functional.all_reduce.default:
        return Refusal(
            start, "collective", f"Of the collectives, {start.target} is not rewritten yet."
        )
    match start.args:
        case (fx.Node() as source, str() as reduce, str() as group):
            pass
        case _:
            return Refusal(
                start,
                "group_not_named",
                "The process group is computed in the graph, and a plan needs its name.",
            )
    waits = list(start.users)
    if len(waits) != 1 or waits[0].target is not functional.wait_tensor.default:
        return Refusal(
            start,
            "not_waited_once",
            "The collective is not followed by exactly one wait, so its result may be used "
            "before it is complete.",
        )
    return AllReduce(start=start, wait=waits[0], source=source, reduce=reduce, group=group)


def read_gemm(node: fx.Node) -> Gemm | Refusal:
    """Read a node as a GEMM of two matrices, or say why it is none."""
    match node.target, node.args:
        case aten.mm.default, (fx.Node() as a, fx.Node() as b):
            bias = None
        case aten.addmm.default, (fx.Node() as bias, fx.Node() as a, fx.Node() as b):
            if any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
                return Refusal(node, "scaled_addmm", "The GEMM scales its operands (alpha, beta).")
        case _:
            return Refusal(
                node, "no_gemm", f"What is reduced is {_called(node)}, not the result of a GEMM."
            )
    left, right, out = tensor_facts(a), tensor_facts(b), tensor_facts(node)
    if left is None or right is None or out is None:
        return Refusal(node, "no_sizes", "Tracing left no sizes at the GEMM.")
    return Gemm(
        node=node,
        a=a,
        b=b,
        bias=bias,
        m=left.shape[0],
        n=right.shape[1],
        k=left.shape[1],
        dtype=out.dtype,
        device=out.device,
        static=left.static and right.static,
    )


def _called(node: fx.Node) -> str:
    return "an input of the graph" if node.op == "placeholder" else f"computed by {node.target}"
