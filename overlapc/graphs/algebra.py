"""Collectives that are one: equal calls, and terms of one sum. What a value shares is told too."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.bands import same
from overlapc.graphs.collectives import Collective, Refusal
from overlapc.graphs.nodes import ORDERED_VIEWS, copy_facts, value_of
from overlapc.graphs.packing import read_slice

aten = torch.ops.aten

LINEAR = {"all_reduce": ("sum", "avg"), "reduce_scatter": ("sum", "avg")}
"""Collectives C with C(a) + C(b) = C(a + b), and the reductions for which that holds."""

PAD = aten.constant_pad_nd.default

REARRANGING = ORDERED_VIEWS | {
    operator.getitem,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.slice.Tensor,
    aten.cat.default,
    aten.permute.default,
    aten.transpose.int,
}
"""Ops that only move elements: equal calls of them give equal values."""


@dataclass(frozen=True)
class Term:
    """A collective whose result is added to something once, and read by nothing else."""

    collective: Collective
    views: tuple[fx.Node, ...]
    """From the wait down to the sum; each keeps the order of elements, or drops the last of a
    dimension."""
    add: fx.Node
    """The addition that reads it."""
    other: fx.Node
    """What it is added to."""
    root: fx.Node
    """The last addition of the sum."""


def read_term(collective: Collective) -> Term | Refusal:
    """Read a collective as a term of a sum, or say why it is none."""
    start = collective.start
    if collective.reduce not in LINEAR.get(collective.name, ()):
        what = f"{collective.name} {collective.reduce!r}".removesuffix(" ''")
        return Refusal(start, "not_linear", f"The sum of two {what} is none of their sum.")
    if not _adds_exactly(value_of(collective.source), collective.reduce):
        return Refusal(start, "dtype", "In this dtype an average, or a sum of two, is not linear.")
    node, views = collective.wait, []
    while (user := _only_user(node)) is not None and (user.target in ORDERED_VIEWS or _cuts(user)):
        views.append(user)
        node = user
    if user is None:
        return Refusal(start, "other_users", "The collective's result has other readers, or none.")
    other = _added_to(user, node)
    if other is None:
        return Refusal(
            start, "no_sum", f"Its reader {user.target} is no plain sum of two alike tensors."
        )
    return Term(collective, tuple(views), user, other, _root(user))


def why_not_one(early: Term, late: Term) -> Refusal | None:
    """Return why two terms of one sum cannot be one collective; None if they can."""
    one, two = early.collective, late.collective
    for name in ("name", "group", "reduce"):
        if getattr(one, name) != getattr(two, name):
            return Refusal(two.start, f"other_{name}", f"The collectives differ in their {name}.")
    if not are_alike(one.source, two.source):
        return Refusal(two.start, "other_shape", "The collectives send other shapes or dtypes.")
    cut, other = list(filter(_cuts, early.views)), list(filter(_cuts, late.views))
    if len(cut) != len(other) or not all(map(_cut_alike, cut, other)):
        return Refusal(two.start, "other_part", "Other parts of the results are added up.")
    return _mutated_between(one.start, two.start)


def _cuts(node: fx.Node) -> bool:
    """Whether a node drops the last of a dimension: padding, on a rank that was sent some."""
    found = read_slice(node)
    return found is not None and statically_known_true(found.start == 0)


def _cut_alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes keep the same of tensors whose elements are in the same order."""
    return are_alike(one, other) and are_alike(one.all_input_nodes[0], other.all_input_nodes[0])


def _adds_exactly(value: object, how: str) -> bool:
    """Whether sums are sums: not of booleans, nor averages that each collective rounds."""
    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return False
    return how == "sum" or value.dtype.is_floating_point


def _added_to(add: fx.Node, operand: fx.Node) -> fx.Node | None:
    """Return the other operand of an unscaled sum of two alike tensors; None for all else."""
    if add.target is not aten.add.Tensor or add.kwargs.get("alpha", 1) != 1:
        return None
    others = [value for value in add.args if value is not operand]
    if len(add.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    other = others[0]
    return other if are_alike(add, operand) and are_alike(add, other) else None


def _root(add: fx.Node) -> fx.Node:
    while (user := _only_user(add)) is not None and _added_to(user, add) is not None:
        add = user
    return add


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def are_alike(one: fx.Node, other: fx.Node) -> bool:
    """Return whether two nodes give tensors of one shape, dtype and device, for every size."""
    left, right = value_of(one), value_of(other)
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return False
    if (left.dtype, left.device) != (right.dtype, right.device):
        return False
    return same(left.shape, right.shape)


def why_not_same(early: Collective, late: Collective) -> Refusal | None:
    """Return why the later of two collectives does not give what the earlier one gave."""
    if call_key(early.start) != call_key(late.start):
        return Refusal(late.start, "other_call", "The collectives send different things.")
    padded = early.source.target is PAD
    return _mutated_between(early.source if padded else early.start, late.start)


def call_key(node: fx.Node) -> Hashable:
    """Return what is equal for nodes that call the same op on the same arguments.

    Only a rank whose shard is smaller than others pads it: arguments that are padded alike are the
    same, or the ranks would say otherwise of the same calls.
    """
    return node.target, _frozen(node.args), _frozen(node.kwargs)


def _frozen(value: object) -> Hashable:
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, fx.Node):
        return call_key(value) if value.target is PAD else value
    # 1, 1.0 and True are equal, and not the same argument.
    return type(value), repr(value)


def erase_unread(node: fx.Node) -> None:
    """Erase a node that nothing reads, and what it was rearranged from and nothing else reads."""
    while not node.users and (node.target in REARRANGING or node.target is PAD):
        sources = node.all_input_nodes
        node.graph.erase_node(node)
        for source in sources[1:]:
            erase_unread(source)
        if not sources:
            return
        node = sources[0]


def equal_rearrangements(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield (first, later) readers of ``node`` that only move its elements, and alike.

    The caller replaces the later one before it asks for the next.
    """
    seen: dict[Hashable, fx.Node] = {}
    for user in sorted(node.users):
        if user.target not in REARRANGING:
            continue
        first = seen.setdefault(call_key(user), user)
        if first is not user:
            yield first, user
    for user in seen.values():
        yield from equal_rearrangements(user)


def _mutated_between(first: fx.Node, last: fx.Node) -> Refusal | None:
    node = first
    while node is not last:
        if mutates(node):
            return Refusal(
                last, "mutation", f"Between the collectives {node.target} writes into a tensor."
            )
        node = node.next
    return None


def mutates(node: fx.Node) -> bool:
    """Return whether a node writes into a tensor that was there before."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    return "mutation" in str(node.target)  # higher-order ops have no schema


def returned_aliases(node: fx.Node) -> list[fx.Node]:
    """Return what the graph returns that may share memory with ``node``, in program order."""
    found, waiting, reached = [], [node], {node}
    while waiting:
        node = waiting.pop()
        if any(user.op == "output" for user in node.users):
            found.append(node)
        for user in node.users:
            if user not in reached and _may_alias(user):
                reached.add(user)
                waiting.append(user)
    return sorted(found)


def _may_alias(node: fx.Node) -> bool:
    if node.target in REARRANGING:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(returned.alias_info is not None for returned in node.target._schema.returns)


def clone(graph: fx.Graph, node: fx.Node, before: fx.Node) -> fx.Node:
    """Insert a contiguous copy of ``node``; Inductor drops it where the memory may be shared."""
    with graph.inserting_before(before):
        copy = graph.call_function(
            aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
        )
    copy_facts(node, copy)
    copy.meta["val"] = value_of(node).clone(memory_format=torch.contiguous_format)
    return copy
