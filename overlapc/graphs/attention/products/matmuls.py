"""Products of matrices in every spelling, read as ``[..., M, C] x [..., C, N] -> [..., M, N]``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.products.contractions import LABELLED, contraction, sums_products
from overlapc.graphs.attention.products.places import Places
from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    CASTS,
    COPIES,
    ORDERED,
    PERMUTATIONS,
    Expression,
    expression,
    is_same,
)
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.collectives import Refusal

NAMES = ("matmul", "bmm", "baddbmm", "einsum", "inner", "tensordot")
UNREAD = ("mv", "dot", "vdot", "addbmm", "chain_matmul", "multi_dot", "linalg_multi_dot", "kron",
          "bilinear", "addmv")  # fmt: skip
"""Products that are not read."""
ADDING = {"baddbmm": ("batch1", "batch2"), "addmm": ("mat1", "mat2")}
"""Those that are added to a tensor, and what their factors are called."""
USUAL = Places()
PRODUCT = "product"
"""The code of a product that is not read."""
SOFTMAX_DIM = "softmax_dim"
"""The code of a softmax that is not over the keys that weights meet."""
NO_WEIGHING = {
    0: "weights are added to the product, and no factor of it",
    2: "weights are both factors of the product, and nothing else is weighed",
}
"""What is wrong where of the two factors so many are weights."""


@dataclass(frozen=True)
class Product:
    """``order(alpha * left @ right + beta * added)``."""

    node: fx.Node
    left: Expression
    """``[..., M, C]``"""
    right: Expression
    """``[..., C, N]``; its leading dimensions broadcast with those of ``left``."""
    alpha: float = 1.0
    added: fx.Node | None = None
    beta: float = 1.0
    order: tuple[int, ...] = ()
    """Dimensions of ``[..., M, N]`` in the order of the node's result; empty: as they are."""
    inner: tuple[fx.Node, ...] = ()
    """Calls before the node that hold nothing but its elements."""

    def transposed(self) -> Product:
        """Return the product whose result is this one with M and N exchanged."""
        return replace(self, left=self.right.transposed(), right=self.left.transposed())

    @property
    def dtype(self) -> torch.dtype:
        """What it is given in: under autocast its operands are cast to that."""
        value = tensor_of(self.node)
        assert value is not None
        return value.dtype

    @property
    def batch(self) -> tuple[Any, ...]:
        """Leading sizes of ``[..., M, N]``."""
        value = tensor_of(self.node)
        assert value is not None
        if not self.order:
            return tuple(value.shape[:-2])
        sizes = dict(zip(self.order, value.shape, strict=True))
        return tuple(sizes[dim] for dim in range(len(self.order) - 2))


def is_product(versions: Versions, call: Call) -> bool:
    """Return whether a call is a product of matrices, or looks like one: a layer is none."""
    if call.name == "sum":
        return sums_products(versions, call)
    factors = {"linear": ("weight",), "addmm": ("mat1", "mat2")}.get(call.name)
    if factors is None:
        return call.name in NAMES
    return not any(_is_parameter(versions, call.node, call.get(name)) for name in factors)


def _is_parameter(versions: Versions, reader: fx.Node, source: object) -> bool:
    """Whether a tensor is a parameter, in another dtype or view."""
    node = versions.read(reader, source) if isinstance(source, fx.Node) else None
    while node is not None and (call := versions.calls.get(node)) is not None:
        if call.in_place or call.name not in (*PERMUTATIONS, *CASTS, *COPIES, *ORDERED):
            return False
        above = call.get("input")
        node = versions.read(node, above) if isinstance(above, fx.Node) else None
    return isinstance(tensor_of(node), torch.nn.Parameter)


def read_product(
    versions: Versions, call: Call, left: fx.Node | None = None, places: Places = USUAL
) -> Product | Refusal:
    """Read a call that is a product.

    ``left`` names the operand that is to stand left, its keys contracted; without it the keys of
    the result are to come from the right one. ``places`` are of that operand, or without it of the
    result.
    """
    if call.in_place:
        return _unread(call, "its product is added to a tensor in place")
    if call.name in LABELLED:
        return _read_labelled(versions, call, left, places)
    if not places.are_last:
        return _unread(call, "rows and keys are not the last two dimensions of scores")
    is_transposed = places != USUAL
    if call.name in ADDING:
        names, given = ADDING[call.name], (call.get("alpha", 1), call.get("beta", 1))
    else:
        names, given = ("input", "other"), (1, 1)
    nodes = [call.get(name) for name in names]
    if left is not None and (why := NO_WEIGHING.get(nodes.count(left))):
        return _unread(call, why)
    if left is not None and [node is left for node in nodes] != [not is_transposed, is_transposed]:
        return _over_rows(call)
    found = _operands(versions, call, nodes)
    if isinstance(found, Refusal):
        return found
    if any(len(side.shape) < 2 for side in found):
        return _unread(call, "an operand is a vector")
    alpha, beta = (number(versions, scale) for scale in given)
    if alpha is None or beta is None:
        return _unread(call, "alpha or beta varies; of a product that is multiplied by it, it may")
    added = call.get("input") if call.name in ADDING and beta != 0 else None
    product = Product(call.node, *found, alpha, added, beta)
    if not is_transposed:
        return product
    *batch, one, other = range(max(len(side.shape) for side in found))
    return replace(product.transposed(), order=() if left is None else (*batch, other, one))


def _operands(
    versions: Versions, call: Call, nodes: list[Any]
) -> tuple[Expression, Expression] | Refusal:
    sides = [
        expression(versions, call.node, node, as_memory=True) if isinstance(node, fx.Node) else None
        for node in nodes
    ]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return _unread(call, "an operand is no tensor")
    return sides[0], sides[1]


def _read_labelled(
    versions: Versions, call: Call, left: fx.Node | None, places: Places
) -> Product | Refusal:
    found = contraction(versions, call)
    if found is None:
        return _unread(call, f"its {call.name} is no product of two matrices")
    sides = [(found.one.tensor, found.one.labels), (found.other.tensor, found.other.labels)]
    is_weights, is_other = left is not None, found.other.node is left
    factors = (found.one.node, found.other.node)
    if left is not None and (why := NO_WEIGHING.get(factors.count(left))):
        return _unread(call, why)
    out = found.out
    scores = (sides[is_other][1]) if is_weights else out
    if len(scores) < max(-places.rows, -places.keys):
        return _unread(call, f"its {call.name} is no product of two matrices")
    row, key = scores[places.rows], scores[places.keys]
    is_swapped = is_other if is_weights else key in sides[0][1]
    (a, a_labels), (b, b_labels) = reversed(sides) if is_swapped else sides
    if is_weights:
        product = _arranged(call, a, a_labels, b, b_labels, out, row, key)
    elif key in a_labels:
        return _unread(call, "its keys are of both operands")
    else:
        if places.are_last:
            out = out[:-2] + row + key
        product = _arranged(call, a, a_labels, b, b_labels, out, row, "")
    if isinstance(product, Refusal):
        return product
    return replace(product, added=found.added, inner=found.inner)


def _arranged(
    call: Call,
    a: Expression,
    a_labels: str,
    b: Expression,
    b_labels: str,
    out: str,
    row: str,
    contracted: str,
) -> Product | Refusal:
    """Permute both sides to ``[..., M, C]`` and ``[..., C, N]``; C where it is named."""
    summed = [label for label in a_labels if label in b_labels and label not in out]
    met = [(a.shape[a_labels.index(label)], b.shape[b_labels.index(label)]) for label in summed]
    if any(not is_same((one,), (other,)) for one, other in met):  # einsum repeats one of them
        return _unread(call, "an operand has one column for all that the other has")
    columns = [label for label in out if label not in a_labels]
    rows = [label for label in out if label not in b_labels]
    every = set(a_labels) | set(b_labels)
    if len(summed) != 1 or len(columns) != 1 or not rows or every - set(out) - set(summed):
        return _unread(call, f"its {call.name} is no product of two matrices")
    if contracted not in ("", summed[0]):
        return _over_rows(call)
    if row not in rows:
        who = "weights meets values" if contracted else "scores is of keys"
        return _unread(call, f"each row of {who} of its own")
    batch = [label for label in out if label != row and label not in columns]
    if contracted:  # as the softmax has them
        batch = [label for label in a_labels if label not in (row, contracted)]
    left = a.permuted(tuple(map(a_labels.index, (*batch, row, *summed))))
    shared = [label for label in batch if label in b_labels]
    right = b.permuted(tuple(map(b_labels.index, (*shared, *summed, *columns))))
    for position, label in enumerate(batch):
        if label not in b_labels:
            right = right.then(torch.unsqueeze, position)
    natural = [*batch, row, *columns]
    order = tuple(natural.index(label) for label in out)
    is_natural = order == tuple(range(len(out)))
    return Product(call.node, left, right, order=() if is_natural else order)


def _unread(call: Call, why: str) -> Refusal:
    return Refusal(call.node, PRODUCT, f"At {call.name}, {why}.")


def _over_rows(call: Call) -> Refusal:
    reason = f"At {call.name}, weights are summed over another dimension than their keys."
    return Refusal(call.node, SOFTMAX_DIM, reason)
