"""A tensor that calls give of a node's: read while matching, put into the graph by a rewrite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.adding import add_call
from overlapc.graphs.attention.reading.spelling import is_full_index, tensor_of
from overlapc.graphs.attention.reading.varying import has_sizes, inferred, with_nodes
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.values import value_of

PERMUTATIONS = ("transpose", "permute", "mT", "T", "t")
COPIES = ("contiguous", "clone")
CASTS = ("to", "_to_copy", "type", "type_as", "float", "double", "half", "bfloat16")
ORDERED = ("view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "getitem")
"""Views that keep the order of elements; ``getitem`` where it takes no part."""
EXPANSIONS = ("expand", "broadcast_to", "expand_as")


@dataclass(frozen=True)
class Expression:
    """A node, and the calls that make the tensor of it that is meant."""

    node: fx.Node
    value: torch.Tensor
    """What the calls give: a fake tensor."""
    read: tuple[tuple[fx.Node, fx.Node], ...] = ()
    """Who read which tensor in the graph as it stands: their values have to be the same later."""
    calls: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = ()

    @property
    def shape(self) -> tuple[int | torch.SymInt, ...]:
        """Sizes, symbols where they vary."""
        return tuple(self.value.shape)

    def then(self, function: Callable[..., Any], *args: Any) -> Expression:
        """Return what ``function(self, *args)`` gives."""
        value = function(self.value, *fx.map_arg(args, value_of))
        return replace(self, value=value, calls=(*self.calls, (function, args)))

    @property
    def has_symbols(self) -> bool:
        """Return whether a call takes a size that varies and that no input of the graph is."""
        return not has_sizes(self.node.graph, [args for _, args in self.calls])

    def is_unwritten(self, versions: Versions) -> bool:
        """Return whether nothing was written to its node, or a view on the way, before it is read.

        What a call gave that made the node is then what is meant.
        """
        return all(versions.read(reader, source) is source for reader, source in self.read)

    def writer(self, versions: Versions) -> fx.Node | None:
        """Return what wrote last what is read of its node; None where that is not known, or a view
        on the way was written to."""
        if not self.read:
            return self.node
        first, *others = self.read
        is_seen = all(versions.read(*one) is one[1] for one in others)
        return versions.read(*first) if is_seen else None

    def before_last(self) -> Expression:
        """Return what the last of its calls is made on; it has one."""
        value = tensor_of(self.node)
        assert value is not None
        return Expression(self.node, value, self.read).replayed(self.calls[:-1])

    def permuted(self, order: tuple[int, ...]) -> Expression:
        """Return it with its dimensions in another order."""
        base = self
        if self.calls and self.calls[-1][0] is torch.permute:
            before = self.calls[-1][1][0]
            order = tuple(before[dim] for dim in order)
            back = tuple(sorted(range(len(before)), key=before.__getitem__))
            base = replace(self, value=torch.permute(self.value, back), calls=self.calls[:-1])
        return base if order == tuple(range(len(order))) else base.then(torch.permute, order)

    def cast(self, dtype: torch.dtype) -> Expression:
        """Return it in another dtype."""
        return self if self.value.dtype == dtype else self.then(torch.Tensor.to, dtype)

    def transposed(self) -> Expression:
        """Return it with its last two dimensions exchanged."""
        *batch, one, other = range(len(self.shape))
        return self.permuted((*batch, other, one))

    def shaped(self, batch: tuple[Any, ...], frame: tuple[Any, ...]) -> Expression:
        """Return it with its leading dimensions broadcast to ``batch``, regrouped as ``frame``."""
        wide = self
        for _ in range(len(batch) + 2 - len(self.shape)):
            wide = wide.then(torch.unsqueeze, 0)
        own = wide.shape[:-2]
        if not is_same(own, batch):
            pairs = zip(own, batch, strict=True)
            sizes = [-1 if is_same((a,), (b,)) else b for a, b in pairs]
            wide = wide.then(torch.broadcast_to, (*sizes, -1, -1))
        if is_same(batch, frame):
            return wide
        if len(batch) > 1:
            wide = wide.then(torch.flatten, 0, len(batch) - 1)
        if not frame:
            return wide.then(torch.squeeze, 0)
        if len(frame) == 1:
            return wide if batch else wide.then(torch.unsqueeze, 0)
        return wide.then(torch.unflatten, 0, inferred(frame))

    def replayed(self, calls: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...]) -> Expression:
        """Return it after the calls of another expression."""
        found = self
        for function, args in calls:
            found = found.then(function, *args)
        return found

    def emit(self, graph: fx.Graph) -> fx.Node:
        """Put the calls where the graph inserts now; return the node of the result."""
        node = self.node
        for function, args in self.calls:
            node = add_call(graph, function, (node, *with_nodes(graph, args)), like=node)
        return node


def is_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Return whether two shapes are equal for every value of their symbols."""
    return len(one) == len(other) and all(
        statically_known_true(a == b) for a, b in zip(one, other, strict=True)
    )


def is_same_tensor(one: Expression, other: Expression) -> bool:
    """Return whether two expressions are one view of the same memory."""
    a, b = one.value, other.value
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata or a.dtype != b.dtype:
        return False
    steps = zip(a.shape, a.stride(), b.stride(), strict=False)
    taken = [(own, its) for size, own, its in steps if not is_same((size,), (1,))]
    return (
        is_same(one.shape, other.shape)
        and all(is_same((own,), (its,)) for own, its in taken)
        and is_same((a.storage_offset(),), (b.storage_offset(),))
    )


def is_dim(value: torch.Tensor, said: object, dim: int) -> bool:
    """Return whether an argument says the dimension ``dim``, counted from the end, and no other."""
    dims = said if isinstance(said, list | tuple) else (said,)
    if len(dims) != 1 or not isinstance(dims[0], int) or value.ndim < -dim:
        return False
    return dims[0] % value.ndim == value.ndim + dim


def is_kept(reduced: torch.Tensor, whole: torch.Tensor, dim: int) -> bool:
    """Return whether a shape is that of ``whole`` with one in place of ``dim``, from the end."""
    sizes = list(whole.shape)
    sizes[dim] = 1
    return is_same(tuple(reduced.shape), tuple(sizes))


def as_it_stands(
    versions: Versions, reader: fx.Node, source: object, *, as_memory: bool = False
) -> Expression | None:
    """Return what ``reader`` reads of ``source``; None as of ``expression``."""
    value = tensor_of(source)
    if not isinstance(source, fx.Node) or value is None:
        return None
    is_known = as_memory or versions.read(reader, source) is not None
    return Expression(source, value, ((reader, source),)) if is_known else None


def expression(
    versions: Versions, reader: fx.Node, source: object, *, as_memory: bool = False
) -> Expression | None:
    """Return what ``reader`` reads of ``source``, as calls on what it is a permutation of.

    None where ``source`` is no tensor, or was written through another view. With ``as_memory`` it
    may have been: for a reader who takes what is there, and does not ask which calls made it.
    """
    plain = as_it_stands(versions, reader, source, as_memory=as_memory)
    seen = versions.read(reader, source) if isinstance(source, fx.Node) else None
    call = versions.calls.get(seen) if seen is not None else None
    if plain is None or call is None or call.in_place:
        return plain
    order = permutation(call.name, call.node, len(plain.shape))
    if not (order or call.name in COPIES):
        return plain
    base = expression(versions, call.node, call.get("input"), as_memory=as_memory)
    if base is None:
        return plain
    moved = base.permuted(order) if order else base
    return replace(moved, read=(*moved.read, *plain.read))


def permutation(name: str, node: fx.Node, dims: int) -> tuple[int, ...]:
    """The order of dimensions that a permutation gives; empty if it is no plain permutation."""
    args: list[Any] = [] if name in ("mT", "T", "t") else list(node.args[1:])
    args += [value for name, value in node.kwargs.items() if name not in ("input", "self")]
    flat: list[Any] = (
        list(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else args
    )
    order = list(range(dims))
    if name == "permute":
        order = [int(dim) % dims for dim in flat] if len(flat) == dims else []
    elif name in PERMUTATIONS and dims >= 2:
        if name in ("T", "t") and dims != 2:
            return ()
        one, other = (int(d) % dims for d in flat) if name == "transpose" else (dims - 2, dims - 1)
        order[one], order[other] = order[other], order[one]
    else:
        return ()
    return tuple(order)


def order_of(versions: Versions, node: fx.Node) -> tuple[int, ...]:
    """Return the order of dimensions that a node gives its input; empty where it does more."""
    call, value = versions.calls.get(node), tensor_of(node)
    if call is None or value is None or call.in_place or value.ndim < 2:
        return ()
    return permutation(call.name, node, value.ndim)


def exchanges_last(versions: Versions, node: fx.Node) -> bool:
    """Return whether a node exchanges the last two dimensions of its input and nothing else."""
    order = order_of(versions, node)
    return len(order) > 1 and order == (*range(len(order) - 2), len(order) - 1, len(order) - 2)


def insertion(versions: Versions, node: fx.Node) -> tuple[object, ...] | None:
    """Return the index by which a call only adds dimensions of one; None where it does more."""
    call, value = versions.calls.get(node), tensor_of(node)
    if call is None or value is None or call.in_place or len(node.all_input_nodes) != 1:
        return None
    if call.name == "getitem" and is_full_index(index := call.get("index")):
        return index if isinstance(index, tuple) else (index,)
    dim = call.get("dim", call.get("0"))
    if call.name == "unsqueeze" and isinstance(dim, int):
        return (*(slice(None),) * (dim % value.ndim), None)
    return None


def keeps_rows(versions: Versions, node: fx.Node) -> bool:
    """Return whether a node regroups the leading dimensions of its input and nothing else."""
    call = versions.calls.get(node)
    if call is None or call.in_place or call.name not in (*ORDERED, *COPIES, *EXPANSIONS):
        return False
    if call.name == "getitem" and not is_full_index(call.get("index")):
        return False
    new, old = tensor_of(node), tensor_of(call.get("input"))
    if new is None or old is None or new.dtype != old.dtype or min(new.ndim, old.ndim) < 2:
        return False
    if call.name in EXPANSIONS and not is_same(tuple(new.shape), tuple(old.shape)):
        return False
    return is_same(tuple(new.shape[-2:]), tuple(old.shape[-2:]))


def keeps_all(versions: Versions, node: fx.Node) -> bool:
    """Return whether a node gives its input as it is, perhaps as a copy of it."""
    new, old = tensor_of(node), tensor_of(node.args[0]) if node.args else None
    is_alike = new is not None and old is not None and is_same(tuple(new.shape), tuple(old.shape))
    return is_alike and keeps_rows(versions, node)


def is_cast(versions: Versions, node: fx.Node) -> bool:
    """Return whether a node gives its input in another dtype on the same device, or in the same.

    Both are numbers with a fraction, of more than 8 bits at the end: others hold something else.
    """
    call = versions.calls.get(node)
    if call is None or call.in_place or call.name not in CASTS:
        return False
    new, old = tensor_of(node), tensor_of(call.get("input"))
    if new is None or old is None or new.device != old.device:
        return False
    is_wide = new.dtype.is_floating_point and new.dtype.itemsize > 1
    return is_wide and old.dtype.is_floating_point
