"""What may be done to a sum in place of each of its terms: layouts, and products with a tensor."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.chains.packing import cat_dim, joined, read_slice
from overlapc.graphs.equality import are_alike
from overlapc.graphs.sizes import shape_of

aten = torch.ops.aten

TURNS = (aten.permute.default, aten.transpose.int, aten.t.default)

PRODUCTS = (aten.mul.Tensor, aten.div.Tensor)


@dataclass(frozen=True)
class Move:
    """One step on a value's way into a sum."""

    node: fx.Node
    """What it gives, ..."""
    source: fx.Node
    """... of what."""
    how: Hashable
    """Equal for steps that do the same to values of the same shape."""
    between: tuple[fx.Node, ...] = ()
    """Nodes on the way from the source to the node, in program order."""
    refusal: tuple[str, str] | None = None
    """Why what it gives is no term of a sum: a code, and what there is."""

    @property
    def is_regrouping(self) -> bool:
        """Whether parts are put side by side that were one after the other."""
        return self.node.target is aten.cat.default

    @property
    def is_product(self) -> bool:
        """Whether it is scaled by a tensor."""
        return self.node.target in PRODUCTS


def read_move(node: fx.Node, terms: Set[fx.Node]) -> Move | None:
    """Read a node that lays a term out otherwise, cuts padding off, or scales it by a tensor.

    ``terms`` holds all nodes that may be terms: of two operands it tells which is scaled.
    """
    if node.target in TURNS:
        return Move(node, node.all_input_nodes[0], (node.target, str(node.args[1:])))
    if cuts(node):
        return Move(node, node.all_input_nodes[0], "cut")
    if node.target is aten.cat.default:
        return _regrouped(node)
    return _scaled(node, terms) if node.target in PRODUCTS and not node.kwargs else None


def move_alike(one: Move, other: Move) -> bool:
    """Whether two steps do the same to tensors whose elements are in the same order."""
    is_same = are_alike(one.node, other.node) and are_alike(one.source, other.source)
    return is_same and one.how == other.how


def cuts(node: fx.Node) -> bool:
    """Return whether a node drops the last of a dimension: padding, where a rank was sent some."""
    found = read_slice(node)
    return found is not None and statically_known_true(found.start == 0)


def _regrouped(cat: fx.Node) -> Move | None:
    """A concatenation of all parts of a tensor, of which nothing else reads any."""
    pieces = cat.args[0]
    assert isinstance(pieces, list | tuple)
    nodes = [piece for piece in pieces if isinstance(piece, fx.Node)]
    found = joined(nodes)
    if found is None or any(len(piece.users) > 1 for piece in nodes):
        return None
    between = (*_splits(nodes), *nodes)
    lengths = tuple(str(shape_of(piece)[found.dim]) for piece in nodes)
    how = ("cat", found.dim, lengths, cat_dim(cat))
    return Move(cat, found.whole, how, tuple(sorted(set(between))))


def _splits(pieces: Sequence[fx.Node]) -> list[fx.Node]:
    return [piece.all_input_nodes[0] for piece in pieces if piece.target is operator.getitem]


def _scaled(node: fx.Node, terms: Set[fx.Node]) -> Move | None:
    """A term times a tensor, or over one; no product of two terms is one."""
    operands = [operand for operand in node.args if isinstance(operand, fx.Node)]
    sources = [operand for operand in operands if operand in terms]
    if len(sources) > 1:  # such as over the sum of what ranks have counted
        sources = [operand for operand in sources if are_alike(operand, node)]
    if len(operands) != 2 or len(sources) != 1:
        return None
    (source,) = sources
    scale = operands[1 - operands.index(source)]
    if node.target is aten.div.Tensor and source is not operands[0]:
        return None
    refusal = None
    if not are_alike(source, node):
        refusal = ("other_dtype", "scaled by a tensor, it is of another shape or dtype")
    return Move(node, source, (node.target, scale), (), refusal)
