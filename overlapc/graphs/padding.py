"""Rows of zeros that even out the shards of a scatter: they may as well come before the GEMM.

A tensor whose rows the ranks do not divide is padded at its end, as a whole or its last part alone.
What follows from a row of zeros by GEMMs and most pointwise ops is a row of zeros, so the operands
are padded instead, and what is computed of them is what is sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.bands import Builder, is_view, shape_of
from overlapc.graphs.nodes import through
from overlapc.graphs.packing import Split, cat_dim, cut_piece
from overlapc.runtime.program import ROWS, Ref, Step

aten = torch.ops.aten

KEEP_ZEROS = frozenset(
    str(op)
    for op in (
        aten.mm.default,
        aten.reshape.default,
        aten.expand.default,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.div.Scalar,
        aten.neg.default,
        aten.relu.default,
        aten.tanh.default,
        aten.gelu.default,
        aten.sin.default,
        aten.abs.default,
        torch.ops.prims.convert_element_type.default,
    )
)
"""Ops that give zeros where one operand is zero."""

SUMS = frozenset(str(op) for op in (aten.add.Tensor, aten.sub.Tensor))
"""Ops that give zeros where all operands are."""


@dataclass(frozen=True)
class Padded:
    """``whole`` with ``rows`` of zeros at the end of dimension ``split.dim``."""

    split: Split
    rows: int


def without_padding(split: Split) -> Padded:
    """Return the parts of a tensor as those of what was there before it was padded."""
    whole = split.whole
    if found := _read_pad(whole, split.dim):
        return Padded(Split(found[0], split.dim), found[1])
    if whole.target is aten.cat.default and cat_dim(whole) == split.dim:
        return _last_part_padded(whole, split.dim) or Padded(split, 0)
    return Padded(split, 0)


def keeps_zeros(builder: Builder) -> bool:
    """Return whether rows of zeros in every operand by rows give rows of zeros."""
    return all(_keeps_zeros(step, builder) for step in builder.steps)


def _keeps_zeros(step: Step, builder: Builder) -> bool:
    if step.op in KEEP_ZEROS:
        return any(_is_rows(arg, builder) for arg in step.args)
    return step.op in SUMS and all(_is_rows(arg, builder) for arg in step.args)


def _is_rows(arg: object, builder: Builder) -> bool:
    if not isinstance(arg, Ref):
        return False
    return not arg.is_operand or builder.operands[arg.index].mode == ROWS


def _read_pad(node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
    """What is padded with zeros at the end of ``dim`` alone, and by how much."""
    if node.target is not aten.constant_pad_nd.default:
        return None
    source, sizes, value = (*node.args, 0)[:3]
    assert isinstance(source, fx.Node)
    assert isinstance(sizes, list | tuple)
    place = 2 * (len(shape_of(node)) - 1 - dim) + 1
    others = [size for index, size in enumerate(sizes) if index != place]
    rows = sizes[place] if place < len(sizes) else 0
    if value != 0 or any(others) or not isinstance(rows, int) or rows < 1:
        return None
    return source, rows


def _last_part_padded(whole: fx.Node, dim: int) -> Padded | None:
    """``cat([part, .., pad(last part)])`` of all parts of one tensor, in order."""
    pieces = whole.args[0]
    assert isinstance(pieces, list | tuple)
    last, _ = through(pieces[-1], is_view)  # pyright: ignore[reportArgumentType]
    found = _read_pad(last, dim)
    if found is None:
        return None
    parts = [through(piece, is_view)[0] for piece in (*pieces[:-1], found[0])]  # type: ignore[arg-type]
    cut = [cut_piece(part) for part in parts]
    size = shape_of(parts[0])[dim]
    source = cut[0][0] if cut[0] else None
    if source is None or any(c is None or c[:2] != (source, dim) for c in cut):
        return None
    in_order = all(
        c is not None and statically_known_true(c[2](size) == index * size)
        for index, c in enumerate(cut)
    )
    covered = shape_of(source)[dim] + found[1] == shape_of(whole)[dim]
    if not in_order or not statically_known_true(covered):
        return None
    return Padded(Split(source, dim), found[1])
