"""Functional collectives of a post-grad graph as typed records; refusals are values too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch._inductor.fx_passes.control_dependencies import control_deps

from overlapc.graphs.origins import where
from overlapc.runtime.ranks import verifying

functional = torch.ops._c10d_functional

NAMES = {
    functional.all_reduce.default: "all_reduce",
    functional.reduce_scatter_tensor.default: "reduce_scatter",
    functional.all_gather_into_tensor.default: "all_gather",
    functional.all_to_all_single.default: "all_to_all",
}
"""The collectives that are read, by the op that starts them, as `planning.problem` names them."""


FOREIGN = ("_c10d_functional", "_dtensor")
"""Namespaces of torch's whose ops all communicate, but for the wait."""


@dataclass(frozen=True)
class Refusal:
    """Why a collective may not be rewritten: the node, a stable code, and one sentence."""

    node: fx.Node
    code: str
    reason: str
    kind: str = ""
    """Kind of the chain that it would have been part of; empty where the collective alone says
    it."""


@dataclass(frozen=True)
class Collective:
    """A functional collective and its one wait."""

    name: str
    """A value of ``NAMES``."""
    start: fx.Node
    wait: fx.Node
    source: fx.Node
    """The tensor that is sent."""
    group: str
    """Name of the process group."""
    reduce: str = ""
    """The reduction as c10d spells it; empty where nothing is reduced."""
    receives: tuple[int | fx.Node, ...] = ()
    """Rows from each rank; all-to-all only."""
    sends: tuple[int | fx.Node, ...] = ()
    """Rows to each rank; all-to-all only."""
    asked: tuple[fx.Node, ...] = ()
    """Nodes that ask ``start`` for a size; all-gather and all-to-all only."""


def is_ours(node: fx.Node) -> bool:
    """Return whether the node is an op of overlapc that communicates: those are told a group."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "overlapc":
        return False
    return any(argument.name == "group" for argument in op._schema.arguments)


def collective_starts(graph: fx.Graph) -> list[fx.Node]:
    """Return every node that starts a collective, ours included, in program order."""
    return [node for node in graph.nodes if _communicates(node)]


def _communicates(node: fx.Node) -> bool:
    op = node.target
    is_torchs = isinstance(op, torch._ops.OpOverload) and op.namespace in FOREIGN
    return (is_torchs and op is not functional.wait_tensor.default) or is_ours(node)


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


def sent_by(graph: fx.Graph) -> dict[str, list[str]]:
    """Return by group how a graph sends each of its collectives, and where, in program order."""
    sent: dict[str, list[str]] = {}
    for node in graph.nodes:
        call = called_by(node)
        if not _communicates(call) or call.target is verifying.OP:
            continue
        who, group = ("overlapc's", call.args[-2]) if is_ours(call) else ("torch's", group_of(call))
        name = str(call.target).split(".")[1]
        sent.setdefault(str(group), []).append(f"{who} {name} at {where(node)}")
    return sent


def is_ordered(node: fx.Node) -> bool:
    """Return whether a control dependency was put around a call, so that it hides a collective."""
    return node.target is control_deps


def called_by(node: fx.Node) -> fx.Node:
    """Return the call that a control dependency was put around, or the node as it is."""
    if not is_ordered(node):
        return node
    name = node.args[1]
    assert isinstance(name, fx.Node)
    body = getattr(node.graph.owning_module, str(name.target))
    return next(inner for inner in body.graph.nodes if inner.op == "call_function")


def op_of(node: fx.Node) -> str:
    """Return the name of the op that a node calls, whatever it is ordered behind."""
    return str(called_by(node).target)


def read_collective(start: fx.Node) -> Collective | Refusal:
    """Read the node that starts a collective: its operand, group, splits and wait."""
    name = NAMES.get(start.target)  # pyright: ignore[reportArgumentType]
    if name is None:
        return Refusal(start, "collective", f"Of the collectives, {start.target} is not rewritten.")
    source, *more, group = start.args
    if not isinstance(group, str):
        return Refusal(
            start,
            "group_not_named",
            "The process group is computed in the graph, and a plan needs its name.",
        )
    # A size that is a multiple of what a rank sends may be asked of the first tensor that has it.
    asked = [user for user in start.users if user.target is torch.ops.aten.sym_size.int]
    asked = asked if name in ("all_gather", "all_to_all") else []
    waits = [user for user in start.users if user not in asked]
    if len(waits) != 1 or waits[0].target is not functional.wait_tensor.default:
        return Refusal(
            start,
            "not_waited_once",
            "The collective is not followed by exactly one wait, so its result may be used "
            "before it is complete.",
        )
    assert isinstance(source, fx.Node)
    known = {"name": name, "start": start, "wait": waits[0], "source": source, "group": group}
    if name in ("all_reduce", "reduce_scatter"):
        return Collective(**known, reduce=str(more[0]))
    if name == "all_to_all":
        receives, sends = (tuple(part) for part in more)  # type: ignore[arg-type]
        return Collective(**known, receives=receives, sends=sends, asked=tuple(asked))
    return Collective(**known, asked=tuple(asked))
