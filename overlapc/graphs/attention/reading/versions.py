"""What a reader of a tensor sees in a graph that writes in place.

A node of a Dynamo graph is a tensor, not a value: after ``scores.mul_(c)`` every reader of
``scores`` reads what ``mul_`` wrote. Here each read is told the node that wrote the value last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from overlapc.graphs.attention.reading.fresh import is_fresh
from overlapc.graphs.attention.reading.idle import is_idle
from overlapc.graphs.attention.reading.shapes import asserts_metadata, reads_shape
from overlapc.graphs.attention.reading.spelling import Call, read_call, tensor_of, told_writes
from overlapc.graphs.autocast import dtype_of_products, states

Outer = Mapping[fx.Node, "tuple[Versions, fx.Node]"]
"""By the placeholders of the body of a higher-order op, the node that the one call gives, as the
graph of the call reads it."""


class Versions:
    """Reads of one graph, as they are when it is built; a rewrite makes them stale."""

    def __init__(
        self, graph: fx.Graph, outer: Outer | None = None, assumed: set[fx.Node] | None = None
    ) -> None:
        self.outer: Outer = outer or {}
        self.assumed: set[fx.Node] = set() if assumed is None else assumed
        """Numbers that vary, as Dynamo has it, and were read as what they are in this call."""
        self.calls: dict[fx.Node, Call] = {}
        self.index: dict[fx.Node, int] = {}
        self.readers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        """By the node that wrote a value, the nodes that read it, and not only what it is, for a
        result."""
        self._seen: dict[tuple[fx.Node, fx.Node], fx.Node | None] = {}
        self._writes: list[tuple[fx.Node, fx.Node]] = []
        """Nodes that write, with the family of what they write to."""
        self._family: dict[fx.Node, fx.Node] = {}
        self._written: dict[fx.Node, int] = {}
        """By the root of a family, where it was written last."""
        self.records: dict[fx.Node, bool | None] = {}
        """Whether gradients are recorded where a node stands; None: as outside of the graph."""
        self._autocast = states(graph)
        self._read_graph(graph)

    def read(self, reader: fx.Node, source: fx.Node) -> fx.Node | None:
        """Return the node that wrote what ``reader`` reads of ``source``.

        None where it was written through another view of its memory.
        """
        return self._seen.get((reader, source), source)

    def casts_to(self, node: fx.Node) -> torch.dtype | None:
        """Return what autocast computes products in where a node stands; None where it is off."""
        value = tensor_of(node)
        return None if value is None else dtype_of_products(self._autocast[node], value)

    def changes(self, source: fx.Node, after: fx.Node, before: fx.Node) -> list[fx.Node]:
        """Return the nodes between two that may write to the memory of ``source``."""
        start, end = self.index[after], self.index[before]
        family = self._root(source)
        return [node for node, written in self._writes
                if start < self.index[node] < end and self._root(written) is family]  # fmt: skip

    def last_write(self, source: fx.Node, before: fx.Node) -> fx.Node | None:
        """Return the last node before another that may write to the memory of ``source``."""
        family, end = self._root(source), self.index[before]
        earlier = (node for node, written in reversed(self._writes)
                   if self.index[node] < end and self._root(written) is family)  # fmt: skip
        return next(earlier, None)

    def is_written(self, source: fx.Node) -> bool:
        """Return whether anything in the graph may write to a node's memory after it was made."""
        return self._written.get(self._root(source), -1) > self.index[source]

    def _root(self, node: fx.Node) -> fx.Node:
        while (parent := self._family.get(node, node)) is not node:
            node = parent
        return node

    def _share(self, one: fx.Node, other: fx.Node) -> None:
        """Let two nodes belong to one family: they may share memory."""
        one, other = self._root(one), self._root(other)
        if one is not other:
            self._family[one] = other
            self._written[other] = max(self._written.get(one, -1), self._written.get(other, -1))

    def _read_graph(self, graph: fx.Graph) -> None:
        current: dict[fx.Node, fx.Node] = {}
        spelled: dict[fx.Node, fx.Node] = {}
        given: dict[int, fx.Node] = {}
        records: bool | None = None

        def newest(source: fx.Node) -> fx.Node:
            return current.get(spelled.get(source, source), source)

        for index, node in enumerate(graph.nodes):
            self.index[node] = index
            if getattr(node.target, "__name__", "") == "_set_grad_enabled":
                records = bool(node.args[0])
            self.records[node] = records
            if (memory := _memory_given(node)) is not None:
                self._share(node, given.setdefault(memory, node))
            call = read_call(node)
            for source in node.all_input_nodes:
                seen = newest(source)
                is_stale = self._written.get(self._root(source), -1) > self.index[seen]
                self._seen[node, source] = None if is_stale else seen
                if not asserts_metadata(call) and not is_idle(node):
                    self.readers[seen].append(node)
            if call is not None:
                self.calls[node] = call
            for source in shares_with(node, call):
                self._share(source, node)
            for written in writes_to(node, call):
                self._writes.append((node, written))
                spelled[node] = spelled.get(written, written)
                current[spelled[node]] = node
                self._written[self._root(written)] = index


def shares_with(node: fx.Node, call: Call | None) -> list[fx.Node]:
    """Return the operands whose memory the result of a node may share."""
    if call is not None and (call.in_place or call.get("out") is not None):
        return writes_to(node, call)
    if call is not None and call.name == "setitem":
        return writes_to(node, call)  # what is put there is copied, and places are read
    if call is not None and is_fresh(call):
        return []
    return [source for source in node.all_input_nodes if not reads_shape(call, source)]


def writes_to(node: fx.Node, call: Call | None) -> list[fx.Node]:
    """Return the tensors that a node writes to, as far as its spelling tells."""
    if call is None:
        return []
    if isinstance(node.target, HigherOrderOperator) and "mutation" in node.target.name():
        return node.all_input_nodes  # a kernel of the user's: any may be written to
    written: list[object] = [call.get("out"), *_written_by_schema(node), *_kept_beside(node)]
    if call.in_place or call.name == "setitem":
        written.append(call.get("input"))
    flat: list[object] = []
    for item in written:
        flat.extend(item if isinstance(item, list | tuple) else [item])
    return [item for item in flat if isinstance(item, fx.Node) and tensor_of(item) is not None]


def _kept_beside(node: fx.Node) -> list[object]:
    """What a function of torch's changes for its next calls: averages that run, and rows of an
    embedding whose norms are bounded."""
    told = told_writes(node)
    rows = None if told.get("max_norm") is None else told.get("weight")
    return [rows, told.get("running_mean"), told.get("running_var")]


def _written_by_schema(node: fx.Node) -> list[object]:
    """What an op of torch's registry says that it writes to."""
    target = node.target
    overloads = [target] if isinstance(target, OpOverload) else []
    if isinstance(target, OpOverloadPacket):
        overloads = [getattr(target, name) for name in target.overloads()]
    written: list[object] = []
    for overload in overloads:
        for place, argument in enumerate(overload._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                is_placed = place < len(node.args)
                written.append(node.args[place] if is_placed else node.kwargs.get(argument.name))
    return written


def _memory_given(node: fx.Node) -> int | None:
    """Which memory an input of the graph has: several may be views of one."""
    value = tensor_of(node) if node.op in ("placeholder", "get_attr") else None
    if value is None or value.layout != torch.strided:
        return None
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a subclass that has none of its own
        return None
