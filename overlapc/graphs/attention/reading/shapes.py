"""Calls that read nothing of a tensor but its shape or dtype: its values may be gone by then.

Those that lay new memory out like it (``zeros_like``) do so of what lies in order alone: what
stands in for it has no order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from overlapc.graphs.adding import add_call
from overlapc.graphs.attention.reading.spelling import Call, read_call, tensor_of
from overlapc.graphs.attention.reading.varying import has_sizes, with_nodes

OF_OTHER = ("expand_as", "view_as", "reshape_as", "type_as")
"""Of their second operand."""
ASSERTING = "_assert_tensor_metadata"
"""What ``torch.export`` puts before each cast: it held while the graph was traced."""
OF_FIRST = ("zeros_like", "ones_like", "full_like", "empty_like",
            "new_zeros", "new_ones", "new_full", "new_empty")  # fmt: skip


def asserts_metadata(call: Call | None) -> bool:
    """Return whether a call gives nothing, and reads nothing but what is known while compiling."""
    return call is not None and call.name == ASSERTING


def reads_shape(call: Call | None, source: fx.Node) -> bool:
    """Return whether a call reads no value of a tensor whose sizes are known while compiling, or
    are inputs of the graph."""
    if asserts_metadata(call):
        return True
    value = tensor_of(source)
    if call is None or value is None or not _may_read_shape(call, source):
        return False
    if not has_sizes(source.graph, tuple(value.shape)):  # of others it is unknown how they lie
        return False
    return not call.name.endswith("_like") or value.is_contiguous()


def _may_read_shape(call: Call, source: fx.Node) -> bool:
    """Whether a call's name says so: this is asked of every read of a graph."""
    is_first = call.get("input") is source
    if call.name in OF_FIRST:
        return is_first and all(
            one is not source or key == "input" for key, one in call.given.items()
        )
    return call.name in OF_OTHER and not is_first


def standing_in(source: fx.Node) -> torch.Tensor:
    """Return a tensor of the shape and dtype of a node's, of one element of memory.

    Sizes that vary are one: what is of such a size is not computed while compiling.
    """
    value = tensor_of(source)
    assert value is not None
    sizes = [size if isinstance(size, int) else 1 for size in value.shape]
    return torch.empty((), dtype=value.dtype).expand(sizes)


def give_shapes(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    """Let others who read shapes of nodes read those of tensors without memory, and none assert
    what such nodes are."""
    inside, given = set(nodes), []
    for node in nodes:
        for user in tuple(node.users):
            call = read_call(user)
            if asserts_metadata(call):
                graph.erase_node(user)
            elif user not in inside and reads_shape(call, node):
                given.append((user, node, _standing_before(graph, user, node)))
    for user, node, other in given:
        user.replace_input_with(node, other)


def _standing_before(graph: fx.Graph, user: fx.Node, node: fx.Node) -> fx.Node:
    value = tensor_of(node)
    assert value is not None
    named = {"dtype": value.dtype, "device": value.device}
    with graph.inserting_before(user):
        one = add_call(graph, torch.empty, ((),), node, named)
        sizes = with_nodes(graph, tuple(value.shape))
        return add_call(graph, torch.Tensor.expand, (one, sizes), node)
