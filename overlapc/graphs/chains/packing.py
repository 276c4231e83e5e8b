"""How a graph lays out a tensor for a collective along any dimension, and back.

Collectives move contiguous parts of dimension 0. To scatter or gather along another dimension, a
program splits and concatenates, slices and concatenates, or permutes a view: all mean one thing.
What else a permutation does is done to every rank's part alike, and so may as well be done to it
alone: after a scatter, or before a gather.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.edges import through
from overlapc.graphs.elementwise import is_view, permutation
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import FEWER, same, shape_of
from overlapc.graphs.values import value_of

aten = torch.ops.aten

SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)


@dataclass(frozen=True)
class Split:
    """A tensor that consists of one part for each rank, along a dimension."""

    whole: fx.Node
    dim: int
    """The dimension of ``whole`` that holds the parts one after the other."""
    trim: fx.Node | None = None
    """What drops padding at the end of ``dim``, after gathering uneven shards: a slice, or a
    concatenation of parts of which the last are cropped."""
    order: tuple[int, ...] = ()
    """The order of dimensions that makes a part: of what came from a scatter, or of what is sent to
    a gather. Empty where no permutation is needed."""
    unpermuted: fx.Node | None = None
    """What came, before it is permuted, where others read that too."""


def permutes_rows(split: Split, moved: fx.Node, ranks: int) -> bool:
    """Return whether parts of several places in their dimension, or of ``moved``'s first one, are
    rearranged."""
    sizes = shape_of(split.whole)[split.dim], shape_of(moved)[0]
    return bool(split.order) and not all(statically_known_true(size == ranks) for size in sizes)


def packed(source: fx.Node, ranks: int) -> Split:
    """Return the tensor whose parts stand in ``source`` one after the other in dimension 0."""
    core, _ = through(source, is_view)
    pieces = _pieces_of_cat(core, 0)
    if pieces is not None:
        found = _cut_evenly(pieces, ranks)
        if found is not None:
            return _before_permutation(found)
    found = _permuted_to_front(core, ranks)
    return _before_permutation(found) if found else Split(source, 0)


def _before_permutation(split: Split) -> Split:
    """Look through a permutation before the split: the same parts of its input, each of which is
    then permuted by itself."""
    permuted, _ = through(split.whole, is_view)
    order = permutation(permuted)
    if order is None or not same(shape_of(permuted), shape_of(split.whole)):
        return split
    now = split.order or tuple(range(len(order)))
    (whole,) = permuted.all_input_nodes
    return Split(whole, order[split.dim], order=tuple(order[index] for index in now))


def _behind_permutation(split: Split) -> Split:
    """Look through a permutation that alone reads the tensor: each part may be permuted before it
    is sent."""
    permuted = _only_user(split.whole)
    order = permutation(permuted) if permuted is not None and not is_view(permuted) else None
    if permuted is None or order is None or split.order:
        return split
    clone = _only_user(permuted)
    is_clone = clone is not None and clone.target is aten.clone.default
    whole = clone if clone is not None and is_clone else permuted
    return Split(whole, order.index(split.dim), order=tuple(order))


def unpacked(wait: fx.Node, ranks: int) -> Split:
    """Return the tensor that readers make of what a collective gave, part after part."""
    parts = _concatenated(wait, ranks)
    found = (
        (parts and _behind_permutation(parts))
        or _permuted_from_front(wait, ranks)
        or Split(wait, 0)
    )
    return _trimmed(found)


def _pieces_of_cat(node: fx.Node, dim: int | None) -> Sequence[fx.Node] | None:
    """The inputs of a concatenation, along ``dim`` if that is given."""
    if node.target is not aten.cat.default:
        return None
    pieces = node.args[0]
    assert isinstance(pieces, list | tuple)
    along = cat_dim(node)
    return pieces if dim is None or along == dim else None  # pyright: ignore[reportReturnType]


def cat_dim(node: fx.Node) -> int:
    """Return the dimension of a concatenation, counted from the front."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    return dim % len(shape_of(node))


def _cut_evenly(pieces: Sequence[fx.Node], ranks: int) -> Split | None:
    """The tensor of which ``pieces`` are all equal parts, in order."""
    if len(pieces) != ranks or not _equal_shapes(pieces):
        return None
    return joined(pieces)


def joined(pieces: Sequence[fx.Node]) -> Split | None:
    """Return the tensor that ``pieces`` make up, cut out of it one after the other."""
    first = cut_piece(pieces[0]) if pieces else None
    end: Any = 0
    for piece in pieces:
        cut = cut_piece(piece)
        if first is None or cut is None or (cut.whole, cut.dim) != (first.whole, first.dim):
            return None
        if not statically_known_true(cut.start == end):
            return None
        end = end + shape_of(piece)[cut.dim]
    if first is None or not statically_known_true(shape_of(first.whole)[first.dim] == end):
        return None
    return Split(first.whole, first.dim)


def _equal_shapes(nodes: Sequence[fx.Node]) -> bool:
    return all(same(shape_of(node), shape_of(nodes[0])) for node in nodes)


@dataclass(frozen=True)
class Piece:
    """Where a part was cut out of a tensor."""

    whole: fx.Node
    dim: int
    start: Any


def cut_piece(node: fx.Node) -> Piece | None:
    """Return where a node was cut out of another one, if it was."""
    return _split_piece(node) or read_slice(node)


def _split_piece(node: fx.Node) -> Piece | None:
    if node.target is not operator.getitem:
        return None
    split, index = node.args
    if not isinstance(split, fx.Node) or not isinstance(index, int):
        return None
    if split.target not in SPLITS:
        return None
    whole, given = split.args[:2]
    assert isinstance(whole, fx.Node)
    dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    sizes = given if isinstance(given, list | tuple) else [given] * index
    start = sum(known(size) for size in sizes[:index])
    return Piece(whole, dim % len(shape_of(whole)), start)


def known(size: Any) -> Any:
    """Return a size as a number or a symbol, however it is an argument."""
    return value_of(size) if isinstance(size, fx.Node) else size


def read_slice(node: fx.Node) -> Piece | None:
    """Return where a slice with step one was cut out, else None."""
    if node.target is not aten.slice.Tensor or node.kwargs or node.args[4:] not in ((), (1,)):
        return None
    whole, dim, start = (*node.args, 0, 0)[:3]
    assert isinstance(whole, fx.Node)
    assert isinstance(dim, int)
    return Piece(whole, dim % len(shape_of(whole)), 0 if start is None else known(start))


def _permuted_to_front(node: fx.Node, ranks: int) -> Split | None:
    """``whole.permute(the dimension that holds the parts first)``."""
    order = permutation(node)
    if order is None:
        return None
    (whole,), dim = node.all_input_nodes, order[0]
    shape = shape_of(whole)
    if not statically_known_true(shape[dim] % ranks == 0):
        return None
    return Split(whole, dim, order=_order_of_parts(order, dim, shape[dim], ranks))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _concatenated(wait: fx.Node, ranks: int) -> Split | None:
    """Parts of dimension 0, each taken by one concatenation along another dimension."""
    below = _below_views(wait)
    pieces = list(below.users)
    if len(pieces) == 1 and pieces[0].target in SPLITS:
        pieces = list(pieces[0].users)
    cats = {_only_user(piece) for piece in pieces}
    cat = cats.pop() if len(cats) == 1 else None
    if cat is None:
        return None
    taken = _pieces_of_cat(cat, None)
    cut = _cut_evenly(taken, ranks) if taken is not None else None
    if cut is None or cut.whole is not below or cut.dim != 0:
        return None
    return Split(cat, cat_dim(cat))


def _below_views(node: fx.Node) -> fx.Node:
    """The last of the views that alone read ``node``, as long as they keep dimension 0."""
    while (user := _only_user(node)) is not None and is_view(user):
        if not same(shape_of(user)[:1], shape_of(node)[:1]):
            break
        node = user
    return node


def _permuted_from_front(wait: fx.Node, ranks: int) -> Split | None:
    """``wait.permute(dimension 0, which holds the parts, to another place)``, or of views of it."""
    view = wait
    while (permuted := _only_permuted(view)) is None:
        user = _only_user(view)
        if user is None or not is_view(user):
            return None
        view = user
    order = permutation(permuted)
    if order is None or not statically_known_true(shape_of(view)[0] % ranks == 0):
        return None
    if any(user.target is aten.sym_size.int for user in view.users):
        refuse(
            view,
            "dynamic_shape",
            f"The graph asks for a size of what arrived before it is used. {FEWER}",
        )
    # Views of a permuted tensor need it contiguous: the clone is what holds the parts in order.
    clone = _only_user(permuted)
    is_clone = clone is not None and clone.target is aten.clone.default
    whole = clone if clone is not None and is_clone else permuted
    of_parts = _order_of_parts(order, 0, shape_of(view)[0], ranks)
    unpermuted = view if len(view.users) > 1 else None
    return Split(whole, order.index(0), order=of_parts, unpermuted=unpermuted)


def _only_permuted(node: fx.Node) -> fx.Node | None:
    """The one reader of a node that has its dimensions in another order, if there is one."""
    permuted = [user for user in node.users if permutation(user) and not is_view(user)]
    return permuted[0] if len(permuted) == 1 else None


def _order_of_parts(order: Sequence[int], dim: int, size: Any, ranks: int) -> tuple[int, ...]:
    """What a permutation does to a part of one rank; empty where only ``dim`` moves, and is one."""
    others = [index for index in order if index != dim]
    moves_ranks_alone = others == sorted(others) and statically_known_true(size == ranks)
    return () if moves_ranks_alone else tuple(order)


def _trimmed(split: Split) -> Split:
    """The split with its ``trim``: what cuts off the end of its dimension, if that alone reads
    it."""
    user = _only_user(split.whole)
    found = read_slice(user) if user is not None else None
    if found is not None and found.dim == split.dim and statically_known_true(found.start == 0):
        return replace(split, trim=user)
    cropped = _cropped(split.whole, split.dim)
    if cropped is not split.whole:
        return replace(split, trim=cropped)
    return replace(split, trim=_rejoined(split))


def _rejoined(split: Split) -> fx.Node | None:
    """The concatenation of all parts of a tensor again, of which the last are cropped."""
    parts = list(split.whole.users)
    if len(parts) == 1 and parts[0].target in SPLITS:
        parts = list(parts[0].users)
    cat = _only_user(_cropped(parts[0], split.dim)) if parts else None
    pieces = _pieces_of_cat(cat, split.dim) if cat is not None else None
    if pieces is None or len(pieces) != len(parts):
        return None
    end: Any = 0
    for piece in pieces:
        part = next((part for part in parts if _cropped(part, split.dim) is piece), None)
        cut = cut_piece(part) if part is not None and _only_user(piece) is cat else None
        if cut is None or (cut.whole, cut.dim) != (split.whole, split.dim):
            return None
        if not statically_known_true(cut.start == end):
            return None
        end = end + shape_of(piece)[split.dim]
    return cat


def _cropped(part: fx.Node, dim: int) -> fx.Node:
    """A part without its end along ``dim``, if that is all that is read of it."""
    user = _only_user(part)
    if user is None or user.target is not aten.constant_pad_nd.default:
        return part
    sizes = user.args[1]
    assert isinstance(sizes, list | tuple)
    place = 2 * (len(shape_of(part)) - 1 - dim) + 1
    others = [size for index, size in enumerate(sizes) if index != place]
    cropped = sizes[place] if place < len(sizes) else 0
    is_crop = isinstance(cropped, int) and cropped < 0
    return user if is_crop and not any(others) else part
